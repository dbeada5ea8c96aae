"""Concept regions at the image's size."""

from __future__ import annotations

import cv2
import numpy as np


def upsample_region(
    region: np.ndarray, stride: int, input_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Resize a region from the cells of a feature map to the pixels of the image, bilinearly.

    Args:
        region: (h, w), cells that cover the network's input.
        stride: pixels of the input along each side of a cell.
        input_size: (height, width) of the network's input, without padding.
        size: (H, W) of the image.

    Returns:
        (H, W) float32.
    """
    rows, columns = region.shape
    at_input = cv2.resize(
        np.ascontiguousarray(region, dtype=np.float32),
        (columns * stride, rows * stride),
        interpolation=cv2.INTER_LINEAR,
    )
    at_input = at_input[: input_size[0], : input_size[1]]
    return cv2.resize(at_input, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def upsample_regions(
    regions: np.ndarray, stride: int, input_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Call :func:`upsample_region` for each of (T, h, w) regions: (T, H, W) float32."""
    shown = np.empty((len(regions), *size), dtype=np.float32)
    for place, region in zip(shown, regions):
        place[:] = upsample_region(region, stride, input_size, size)
    return shown
