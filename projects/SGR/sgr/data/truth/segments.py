"""Panoptic segments of one image: its picture of ids and the list of its segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .image_files import read_image

__all__ = ["find_segments", "read_segment_map", "segment_labels"]


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
