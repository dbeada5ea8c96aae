"""The instances of one image at its own resolution, read for evaluation.

Records are dicts in Detectron2's standard dataset format.
"""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

from sgr.data.image_files import read_image

__all__ = ["has_instances", "read_instance_map"]


def has_instances(record: dict) -> bool:
    """Whether the record's format says which pixels belong to which thing."""
    return "annotations" in record or "pan_seg_file_name" in record


def read_instance_map(record: dict, size: tuple[int, int], thing_ids=frozenset()) -> np.ndarray:
    """One integer map of the instances of things.

    Taken from ``annotations`` (COCO style), or else from ``pan_seg_file_name`` and
    ``segments_info``. Where annotated masks overlap, the one with the smaller area lies on top.
    Crowds are no instances, and their pixels belong to nothing unless an instance covers them.

    Args:
        record: a dataset record, see :func:`has_instances`.
        size: (height, width) of the image, for annotations.
        thing_ids: categories that are things, for segments that do not say ``isthing``.

    Returns:
        (H, W) int32: the instance's index in ``annotations`` or ``segments_info``, -1 elsewhere.

    Raises:
        FileNotFoundError, OSError: the panoptic picture is missing or damaged.
        ValueError: a mask is not of the image's size.
    """
    if "annotations" in record:
        return _map_of_annotations(record["annotations"], size)
    picture = read_image(record["pan_seg_file_name"], format=None)
    return _map_of_segments(picture, record["segments_info"], thing_ids)


def _map_of_annotations(annotations: list[dict], size: tuple[int, int]) -> np.ndarray:
    masks = {}
    for index, annotation in enumerate(annotations):
        if annotation.get("iscrowd", 0):
            continue
        rle = _to_rle(annotation.get("segmentation"), size)
        if rle is not None:
            masks[index] = rle
    instances = np.full(size, -1, dtype=np.int32)
    for index in sorted(masks, key=lambda index: -int(mask_util.area(masks[index]))):
        mask = mask_util.decode(masks[index])
        if mask.shape != tuple(size):
            raise ValueError(
                f"the mask of annotation {index} is {mask.shape[0]} x {mask.shape[1]}, but the "
                f"image is {size[0]} x {size[1]}"
            )
        instances[mask.astype(bool)] = index
    return instances


def _to_rle(segmentation: dict | list | None, size: tuple[int, int]) -> dict | None:
    """Polygons, or a compressed or plain run-length code, as a compressed code."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    # pycocotools would read four numbers as a box.
    polygons = [np.ravel(polygon).tolist() for polygon in segmentation or []]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    return mask_util.merge(mask_util.frPyObjects(polygons, *size)) if polygons else None


def _map_of_segments(picture: np.ndarray, segments: list[dict], thing_ids) -> np.ndarray:
    picture = picture.astype(np.int32)
    if picture.ndim == 3:  # COCO's panoptic format keeps an id in three bytes.
        picture = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
    instances = np.full(picture.shape, -1, dtype=np.int32)
    things = {
        segment["id"]: index
        for index, segment in enumerate(segments)
        if not segment.get("iscrowd", 0)
        and segment.get("isthing", segment["category_id"] in thing_ids)
    }
    if things:
        ids = np.array(sorted(things))
        indices = np.array([things[id] for id in ids], dtype=np.int32)
        position = np.searchsorted(ids, picture).clip(max=len(ids) - 1)
        found = ids[position] == picture
        instances[found] = indices[position[found]]
    return instances
