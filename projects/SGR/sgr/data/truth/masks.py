"""Masks of annotations, COCO style: polygons and run-length codes."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["to_rle", "valid_polygons"]


def to_rle(segmentation: dict | list | None, size: tuple[int, int]) -> dict | None:
    """The mask of an annotation as a compressed run-length code.

    Args:
        segmentation: polygons, or a run-length code, compressed or not.
        size: (height, width) of the image, for polygons.

    Returns:
        The code, which stores its own size; None if no polygon has three corners.

    Raises:
        ValueError: a code has more or fewer pixels than its size says: it is cut off, or of a mask
            of another size.
    """
    if isinstance(segmentation, dict):
        code = segmentation
        height, width = code["size"]
        if isinstance(code["counts"], list):
            if any(count < 0 for count in code["counts"]):
                raise ValueError("the run-length code has a negative run")
            code = mask_util.frPyObjects(code, height, width)
        pixels = _num_pixels(code["counts"])
        if pixels != height * width:
            raise ValueError(
                f"the run-length code has {pixels} pixels, but its size, {width} x {height}, "
                f"wants {height * width}"
            )
        return code
    polygons = [polygon.tolist() for polygon in valid_polygons(segmentation)]
    return mask_util.merge(mask_util.frPyObjects(polygons, *size)) if polygons else None


def valid_polygons(segmentation: list | None) -> list[np.ndarray]:
    """The polygons with at least three corners, each as a flat array of x, y, x, y..."""
    polygons = [np.ravel(np.asarray(polygon, np.float64)) for polygon in segmentation or []]
    # pycocotools would read four numbers as a box.
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


# Needed: pycocotools 2.0.11 decodes a truncated code without an error, and fills the missing pixels
# with whatever the memory holds.
def _num_pixels(code: bytes | str) -> int:
    """The sum of the runs of a compressed run-length code.

    The code is COCO's. A character from "0" on stores five bits of a number, lowest bits first, and
    one bit that tells whether the number goes on. Numbers are in two's complement. From the fourth
    number on, a number is the difference to the run two places before it.
    """
    characters = np.frombuffer(code if isinstance(code, bytes) else code.encode(), np.uint8)
    digits = characters.astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or not last[-1]:
        return 0
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << np.minimum(5 * places, 55), starts)
    numbers -= np.where(digits[ends] & 16, 1 << np.minimum(5 * lengths, 60), 0)
    odd, even = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return int(numbers[0] + odd.sum() + even.sum())
