"""Label maps that look like annotations."""

from __future__ import annotations

import cv2
import numpy as np

IGNORE_LABEL = 255


def patches(rng: np.random.Generator, size: int | tuple[int, int], count: int) -> np.ndarray:
    """Make a uint8 map of patches with wavy borders, one label each, in an ignored frame.

    A patch is the region nearest to a random point, after the plane has been bent.

    Args:
        rng: source of points and bends.
        size: (height, width), or the side of a square, pixels.
        count: number of patches.

    Raises:
        ValueError: for more patches than a uint8 map has labels.
    """
    if count > IGNORE_LABEL:
        raise ValueError(f"a label map has at most {IGNORE_LABEL} labels, not {count}")
    height, width = (size, size) if isinstance(size, int) else size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / height, x / width
    for plane in (y, x):
        bend = rng.normal(0, 0.08, (9, 9)).astype(np.float32)
        plane += cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC)
    labels = np.zeros((height, width), np.uint8)
    nearest = np.full((height, width), np.inf, np.float32)
    for label, (point_y, point_x) in enumerate(rng.random((count, 2), dtype=np.float32)):
        distance = np.hypot(y - point_y, x - point_x)
        labels[distance < nearest] = label
        np.minimum(nearest, distance, out=nearest)
    frame = -(-min(height, width) // 64)
    labels[:frame] = labels[-frame:] = labels[:, :frame] = labels[:, -frame:] = IGNORE_LABEL
    return labels


def with_noise(rng: np.random.Generator, label_map: np.ndarray, count: int) -> np.ndarray:
    """Put a random one of ``count`` labels into every tenth pixel of a map."""
    random = rng.integers(0, count, label_map.shape, dtype=np.uint8)
    return np.where(rng.random(label_map.shape) < 0.1, random, label_map)
