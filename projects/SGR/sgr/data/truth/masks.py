"""Masks of annotations, COCO style: polygons and run-length codes."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

# pycocotools stores five points for each pixel of an outline, about 150 bytes, before it looks at
# the size of the mask; it ends the process where they are too many.
OUTLINE_LIMIT = 3_000_000


def to_rle(segmentation: dict | list | None, size: tuple[int, int]) -> dict | None:
    """The mask of an annotation as a compressed run-length code.

    Args:
        segmentation: polygons, or a run-length code, compressed or not.
        size: (height, width) of the image.

    Returns:
        The code, which stores its own size; None if no polygon has three corners.

    Raises:
        ValueError: a code is not of the image's size, or has more or fewer pixels than its size
            says; or the outline of a polygon is far too long.
    """
    if isinstance(segmentation, dict):
        code = segmentation
        height, width = code["size"]
        if (height, width) != tuple(size):
            raise ValueError(
                f"the mask is {width} x {height}, but the image is {size[1]} x {size[0]} pixels"
            )
        if isinstance(code["counts"], list):
            if any(count < 0 for count in code["counts"]):
                raise ValueError("the run-length code has a negative run")
            pixels = sum(code["counts"])
            if pixels == height * width:  # it would not fit into 32 bits otherwise
                code = mask_util.frPyObjects(code, height, width)
        else:
            pixels = _num_pixels(code["counts"])
        if pixels != height * width:
            raise ValueError(
                f"the run-length code has {pixels} pixels, but its size, {width} x {height}, "
                f"wants {height * width}"
            )
        return code
    polygons = valid_polygons(segmentation, size)
    length = max(map(outline_length, polygons), default=0)
    if length > OUTLINE_LIMIT:
        raise ValueError(f"a polygon has an outline of {length:.3g} pixels, far too long to draw")
    # A clipped polygon can be empty.
    lists = [polygon.tolist() or [0.0] * 6 for polygon in polygons]
    return mask_util.merge(mask_util.frPyObjects(lists, *size)) if lists else None


def valid_polygons(
    segmentation: list | None, size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The polygons with at least three corners, each as a flat array of x, y, x, y...

    Args:
        segmentation: polygons.
        size: (height, width) of the image: clip the polygons, see :func:`clip_polygon`. None leaves
            them as they are.
    """
    polygons = [np.ravel(np.asarray(polygon, np.float64)) for polygon in segmentation or []]
    # pycocotools would read four numbers as a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return polygons if size is None else [clip_polygon(polygon, size) for polygon in polygons]


def outline_length(polygon: np.ndarray) -> float:
    """The length of a flat polygon's outline, in pixels: the larger of dx and dy of each side."""
    corners = polygon.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def clip_polygon(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut off the parts of a polygon that lie far outside of an image.

    A polygon that reaches beyond the image by less than the image's longer side, or by less than
    1000 pixels, is returned as it is. Its mask in the image does not change.

    Args:
        polygon: a flat array of x, y, x, y...
        size: (height, width) of the image.

    Returns:
        A flat array, possibly empty.
    """
    margin = max(1000, *size)
    low, high = np.array([-margin] * 2), np.array([size[1] + margin, size[0] + margin])
    corners = polygon.reshape(-1, 2)
    if (corners >= low).all() and (corners <= high).all():
        return polygon
    for axis in (0, 1):
        for sign, limit in ((1, low[axis]), (-1, high[axis])):
            corners = _clip_side(corners, axis, sign, float(limit))
    return corners.ravel()


# By Sutherland and Hodgman.
def _clip_side(corners: np.ndarray, axis: int, sign: int, limit: float) -> np.ndarray:
    """The part of a polygon (N, 2) with ``sign * coordinate >= sign * limit``."""
    distances = sign * (corners[:, axis] - limit)
    others, other_distances = np.roll(corners, -1, axis=0), np.roll(distances, -1)
    crosses = (distances >= 0) != (other_distances >= 0)
    # From the corner that is inside, because the other may be too far away to be subtracted.
    is_inside = (distances >= 0)[:, None]
    inside, outside = np.where(is_inside, corners, others), np.where(is_inside, others, corners)
    near, far = np.maximum(distances, other_distances), np.minimum(distances, other_distances)
    share = np.divide(near, near - far, out=np.zeros_like(near), where=crosses)
    cuts = inside + share[:, None] * (outside - inside)
    cuts[:, axis] = limit
    # Each corner that is inside, then the cut of the side after it.
    kept = np.stack([distances >= 0, crosses], axis=1)
    return np.stack([corners, cuts], axis=1)[kept]


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
