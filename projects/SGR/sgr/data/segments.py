"""Segments and instances of one image, read from records in Detectron2's standard format."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

from .image_files import read_image

__all__ = ["read_segment_map", "to_rle", "valid_polygons"]


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
    ids = np.array([segment["id"] for segment in record["segments_info"]], np.int64)
    order = np.argsort(ids)
    # One more at the end, found where an id is larger than all of them.
    sorted_ids = np.append(ids[order], -1).astype(np.int32)
    index_of = np.append(order, -1).astype(np.int32)
    position = np.searchsorted(sorted_ids[:-1], picture)
    indices = index_of[position]
    unknown = sorted_ids[position] != picture
    indices[unknown] = -1
    wrong = unknown & (picture != 0)
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
