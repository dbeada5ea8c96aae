"""Segments and instances of one image, read from records in Detectron2's standard format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from .image_files import read_image

__all__ = ["find_segments", "read_segment_map", "segment_labels", "to_rle", "valid_polygons"]


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
        ValueError: it holds other ids than those of ``segments_info``; up to ten are named.
    """
    file_name = record["pan_seg_file_name"]
    picture = read_image(file_name, format=None).astype(np.int32)
    if picture.ndim == 3:
        picture = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
    indices = find_segments(picture, [segment["id"] for segment in record["segments_info"]])
    wrong = (indices < 0) & (picture != 0)
    if wrong.any():
        values = np.unique(picture[wrong])
        shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        raise ValueError(
            f"panoptic picture {file_name} holds the id(s) {shown}, which its segments_info lacks"
        )
    return indices


def to_rle(segmentation: dict | list | None, size: tuple[int, int]) -> dict | None:
    """The mask of an annotation as a compressed run-length code.

    Args:
        segmentation: polygons, or a run-length code, compressed or not.
        size: (height, width) of the image, for polygons.

    Returns:
        The code, which has a size of its own; None where there is no polygon of three corners.
    """
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [polygon.tolist() for polygon in valid_polygons(segmentation)]
    return mask_util.merge(mask_util.frPyObjects(polygons, *size)) if polygons else None


def valid_polygons(segmentation: list | None) -> list[np.ndarray]:
    """Those of at least three corners, each as a flat array of x, y, x, y..."""
    polygons = [np.ravel(np.asarray(polygon, np.float64)) for polygon in segmentation or []]
    # pycocotools would read four numbers as a box.
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
