"""Panoptic segments of one image: its picture of ids and the list of its segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..components import find_runs
from ..faults import list_values
from .annotations import category_fault
from .image_files import read_image


def has_segments(record: dict) -> bool:
    """Whether the record has ``pan_seg_file_name`` and ``segments_info``."""
    return {"pan_seg_file_name", "segments_info"} <= record.keys()


def find_segments(id_map: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Replace the ids in a map by their places in a list.

    It makes a binary search for each run of equal ids along the rows, so ids may be of any size.

    Args:
        id_map: (H, W) integers.
        ids: in any order; the first of equal ids counts.

    Returns:
        (H, W) int32: the place of each pixel's id, or -1 if the list does not have it.
    """
    given = np.asarray(ids, np.int64)
    order = np.argsort(given, kind="stable")
    # The additional entry at the end is found for an id that is larger than all others.
    sorted_ids, place_of = np.append(given[order], -1), np.append(order, -1).astype(np.int32)
    pixels = id_map.ravel()
    starts, lengths = find_runs(pixels)
    of_run = pixels[starts]
    position = np.searchsorted(sorted_ids[:-1], of_run.astype(np.int64))
    places = place_of[position]
    places[sorted_ids[position] != of_run] = -1
    return np.repeat(places, lengths).reshape(id_map.shape)


def segment_labels(segments: list[dict], *, ignore_value: int) -> np.ndarray:
    """The label of each segment's pixels.

    Indexing the result with a map of :func:`read_segment_map` gives the label map of the image: a
    place of -1 finds the last entry, which is the label of pixels without a segment.

    Args:
        segments: dicts with ``category_id`` and, for crowds, ``iscrowd``.
        ignore_value: the label of crowds and of pixels without a segment.

    Returns:
        (N + 1,) int64: a label for each segment, and ``ignore_value``.
    """
    labels = [
        ignore_value if segment.get("iscrowd", 0) else segment["category_id"]
        for segment in segments
    ]
    return np.array([*labels, ignore_value], np.int64)


def segment_faults(record: dict, num_classes: int) -> Iterator[tuple[int, str]]:
    """Check the ``segments_info`` of a record.

    Args:
        record: with ``pan_seg_file_name`` and ``segments_info``.
        num_classes: categories are in ``[0, num_classes)``.

    Yields:
        The index of a segment and what is wrong with it: its id or its category is missing, or it
        has a category that does not exist.
    """
    file_name = record["pan_seg_file_name"]
    for index, segment in enumerate(record["segments_info"]):
        missing = [key for key in ("id", "category_id") if key not in segment]
        if missing:
            yield index, f"segment {index} of {file_name} has no {missing[0]}"
            continue
        fault = category_fault(segment["category_id"], num_classes)
        if fault:
            yield index, f"segment {segment['id']} of {file_name} {fault}"


def read_segment_map(record: dict) -> np.ndarray:
    """Read the panoptic picture of a record, with ids replaced by places in ``segments_info``.

    A picture in COCO's format stores an id in three bytes, R + 256 G + 65536 B. A picture with a
    single channel stores ids as they are.

    Args:
        record: with ``pan_seg_file_name`` and ``segments_info``, a list of dicts with an ``id``.

    Returns:
        (H, W) int32: the place of the pixel's segment in ``segments_info``, or -1 if it has none
        (id 0, unless a segment has this id).

    Raises:
        FileNotFoundError, OSError: the picture is missing or damaged.
        ValueError: the picture has two channels, or an id that ``segments_info`` does not have (the
            message names up to ten); or ids of segments are no integers.
    """
    file_name = record["pan_seg_file_name"]
    picture = read_image(file_name, format=None)
    if picture.dtype.kind == "f":
        raise ValueError(f"panoptic picture {file_name} has floating-point numbers (mode F)")
    picture = picture.astype(np.int32)
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
        raise ValueError(
            f"panoptic picture {file_name} holds the id(s) {list_values(np.unique(picture[wrong]))}"
            ", which its segments_info lacks"
        )
    return indices
