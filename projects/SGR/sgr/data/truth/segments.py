"""Segments and instances of one image, read from records in Detectron2's standard format."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from .image_files import read_image

__all__ = [
    "find_segments",
    "read_segment_map",
    "segment_labels",
    "segmentation_fault",
    "to_rle",
    "valid_polygons",
]


def find_segments(id_map: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Replace the ids in a map by their places in a list.

    A binary search for each pixel: ids may be as large as they like.

    Args:
        id_map: (H, W) integers.
        ids: in any order; of equal ones the first counts.

    Returns:
        (H, W) int32: the place of each pixel's id, -1 where the list lacks it.
    """
    ids = np.asarray(ids, np.int64)
    order = np.argsort(ids, kind="stable")
    # One more at the end, found where an id is larger than all of them.
    sorted_ids, place_of = np.append(ids[order], -1), np.append(order, -1).astype(np.int32)
    position = np.searchsorted(sorted_ids[:-1], id_map.astype(np.int64))
    places = place_of[position]
    places[sorted_ids[position] != id_map] = -1
    return places


def segment_labels(segments: list[dict], *, ignore_value: int) -> np.ndarray:
    """The label that each segment gives its pixels.

    Indexed with the places of :func:`read_segment_map`, of which -1 finds the last, it gives the
    label map of an image.

    Args:
        segments: dicts with ``category_id`` and, for crowds, ``iscrowd``.
        ignore_value: the label of crowds and of pixels without a segment.

    Returns:
        (N + 1,) int64: a label for each segment, and the one of pixels without.
    """
    labels = [
        ignore_value if segment.get("iscrowd", 0) else segment["category_id"]
        for segment in segments
    ]
    return np.array([*labels, ignore_value], np.int64)


def read_segment_map(record: dict) -> np.ndarray:
    """The panoptic picture of a record, with ids replaced by places in ``segments_info``.

    A picture in COCO's format keeps an id in three bytes, R + 256 G + 65536 B; one with a single
    channel holds ids as they are.

    Args:
        record: with ``pan_seg_file_name`` and ``segments_info``, a list of dicts with an ``id``.

    Returns:
        (H, W) int32: the index of the pixel's segment in ``segments_info``, -1 where there is
        none (id 0, unless a segment has it).

    Raises:
        FileNotFoundError, OSError: the picture is missing or damaged.
        ValueError: it holds other ids than those of ``segments_info``, of which up to ten are
            named; or it, or they, cannot be such.
    """
    file_name = record["pan_seg_file_name"]
    picture = read_image(file_name, format=None).astype(np.int32)
    if picture.ndim == 3:
        if picture.shape[2] < 3:
            raise ValueError(
                f"panoptic picture {file_name} has {picture.shape[2]} channels, not 1 or 3"
            )
        picture = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
    ids = [segment["id"] for segment in record["segments_info"]]
    try:
        indices = find_segments(picture, ids)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"panoptic picture {file_name} has segments whose ids are no integers: {error}"
        ) from error
    wrong = (indices < 0) & (picture != 0)
    if wrong.any():
        values = np.unique(picture[wrong])
        shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        raise ValueError(
            f"panoptic picture {file_name} holds the id(s) {shown}, which its segments_info lacks"
        )
    return indices


def segmentation_fault(
    segmentation: dict | list, size: tuple[int, int] | None = None
) -> str | None:
    """What is wrong with the segmentation of an annotation, seen from its form.

    Cheap enough for every annotation of a dataset: microseconds each, and no mask is made. Polygons
    that :func:`valid_polygons` leaves out are no fault; the runs of a code are for :func:`to_rle`.

    Args:
        segmentation: polygons, or a run-length code.
        size: (height, width) of the image, if known.

    Returns:
        What would follow "the annotation ..." in a sentence, or None where nothing is wrong.
    """
    if isinstance(segmentation, dict):
        if not {"counts", "size"} <= segmentation.keys():
            return f"has a run-length code of {sorted(segmentation)}, not of counts and size"
        if not isinstance(segmentation["counts"], (bytes, str, list)):
            kind = type(segmentation["counts"]).__name__
            return f"has a run-length code with counts of type {kind}, not a list or a string"
        if isinstance(segmentation["counts"], list) and not _are_numbers(segmentation["counts"]):
            return "has a run-length code with counts that are not numbers"
        code_size = segmentation["size"]
        if not _are_numbers(code_size) or len(code_size) != 2:
            return f"has a run-length code of the size {code_size!r}, not of two numbers"
        code_size = tuple(code_size)
        if size is not None and code_size != tuple(size):
            return (
                f"has a mask of {code_size[1]} x {code_size[0]}, but the image is "
                f"{size[1]} x {size[0]} pixels"
            )
        return None
    if not isinstance(segmentation, (list, tuple)):
        return (
            f"has a segmentation of type {type(segmentation).__name__}; it must be a list of "
            "polygons or a run-length code"
        )
    for polygon in segmentation:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            return (
                "has plain numbers as segmentation; polygons are lists in a list: "
                "[[x, y, x, y, ...], ...]"
            )
        try:
            # For the usual lists of numbers much faster than by way of an array.
            finite = math.isfinite(sum(polygon))
        except TypeError:
            try:
                finite = bool(np.isfinite(np.asarray(polygon, np.float64)).all())
            except (TypeError, ValueError):
                return "has a polygon that does not consist of numbers"
        if not finite:
            return "has a polygon with a coordinate that is not finite"
    return None


def _are_numbers(values: object) -> bool:
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def to_rle(segmentation: dict | list | None, size: tuple[int, int]) -> dict | None:
    """The mask of an annotation as a compressed run-length code.

    Args:
        segmentation: polygons, or a run-length code, compressed or not.
        size: (height, width) of the image, for polygons.

    Returns:
        The code, which has a size of its own; None where there is no polygon of three corners.

    Raises:
        ValueError: a code has more or fewer pixels than its size says, as where it is cut off or
            of a mask of another size. (pycocotools would fill the gap with whatever the memory
            holds.)
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


def _num_pixels(code: bytes | str) -> int:
    """The sum of the runs of a compressed run-length code.

    The code is COCO's: characters from "0" on hold five bits each and whether the number goes on,
    lowest bits first, in two's complement; from the fourth on, a number is the difference to the
    run two before it.
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


def valid_polygons(segmentation: list | None) -> list[np.ndarray]:
    """Those of at least three corners, each as a flat array of x, y, x, y..."""
    polygons = [np.ravel(np.asarray(polygon, np.float64)) for polygon in segmentation or []]
    # pycocotools would read four numbers as a box.
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
