"""Classes and instances of one image at its own resolution, read for evaluation.

Records are dicts in Detectron2's standard dataset format.
"""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

from sgr.data.image_files import check_labels, read_labels
from sgr.data.segments import read_segment_map, segment_labels, to_rle, valid_polygons

__all__ = [
    "count_without_mask",
    "has_classes",
    "has_instances",
    "read_class_map",
    "read_instance_map",
]


def has_classes(record: dict) -> bool:
    """Whether the record's format says of which class the pixels are."""
    return "sem_seg_file_name" in record or "pan_seg_file_name" in record


def read_class_map(
    record: dict, *, num_classes: int | None = None, ignore_label: int | None = None
) -> np.ndarray:
    """The class of each pixel.

    Taken from ``sem_seg_file_name``, or else from ``pan_seg_file_name`` and ``segments_info``,
    whose crowds are ignored like pixels without a segment.

    Args:
        record: a dataset record, see :func:`has_classes`.
        num_classes: classes are in ``[0, num_classes)``; None if that is not known.
        ignore_label: the label of unlabelled pixels in ``sem_seg_file_name``; None where there is
            none.

    Returns:
        (H, W) integers, -1 where the pixel is ignored.

    Raises:
        FileNotFoundError, OSError: a file is missing or damaged.
        ValueError: there are other classes, or the panoptic picture holds ids without a segment.
    """
    if "sem_seg_file_name" in record:
        label_file = record["sem_seg_file_name"]
        labels = read_labels(label_file)
        if num_classes is not None:
            check_labels(labels, label_file, num_classes=num_classes, ignore_label=ignore_label)
        ignored = labels == ignore_label
        labels = labels.astype(np.int32)
        labels[ignored] = -1
        return labels
    labels = segment_labels(record["segments_info"], ignore_value=-1)
    if num_classes is not None and (labels >= num_classes).any():
        raise ValueError(
            f"{record['pan_seg_file_name']} has a segment of category_id {labels.max()}; expected "
            f"are 0 to {num_classes - 1}"
        )
    return labels[read_segment_map(record)]


def has_instances(record: dict) -> bool:
    """Whether the record's format says which pixels belong to which thing."""
    return "annotations" in record or "pan_seg_file_name" in record


def read_instance_map(record: dict, size: tuple[int, int], thing_ids=frozenset()) -> np.ndarray:
    """One integer map of the instances of things.

    Taken from ``annotations`` (COCO style), or else from ``pan_seg_file_name`` and
    ``segments_info``. Where annotated masks overlap, the one with the smaller area (in pixels, of
    the whole mask) lies on top; of equal ones the later. Crowds are no instances, and their pixels
    belong to nothing unless an instance covers them. The same holds for instances of which a box
    is known but no mask, see :func:`count_without_mask`: a box is mostly background and would
    take the pixels of its neighbours. What the box of a mask is, does not matter.

    Args:
        record: a dataset record, see :func:`has_instances`.
        size: (height, width) of the image, for annotations.
        thing_ids: categories that are things, for segments that do not say ``isthing``.

    Returns:
        (H, W) int32: the instance's index in ``annotations`` or ``segments_info``, -1 elsewhere.

    Raises:
        FileNotFoundError, OSError: the panoptic picture is missing or damaged.
        ValueError: a mask is not of the image's size, or the picture holds ids without a segment.
    """
    if "annotations" in record:
        try:
            return _map_of_annotations(record["annotations"], size)
        except ValueError as error:
            raise ValueError(f"{record.get('file_name', 'record')}: {error}") from error
    segments = record["segments_info"]
    # One more at the end, for pixels without a segment.
    things = np.full(len(segments) + 1, -1, np.int32)
    for index, segment in enumerate(segments):
        if segment.get("isthing", segment["category_id"] in thing_ids):
            if not segment.get("iscrowd", 0):
                things[index] = index
    return things[read_segment_map(record)]


def count_without_mask(record: dict) -> int:
    """The instances among a record's ``annotations``, crowds aside, that have a box at most.

    Those have no ``segmentation``, or no polygon of three corners in it.
    """
    return sum(
        not annotation.get("iscrowd", 0) and not _has_mask(annotation.get("segmentation"))
        for annotation in record.get("annotations", ())
    )


def _has_mask(segmentation: dict | list | None) -> bool:
    return isinstance(segmentation, dict) or bool(valid_polygons(segmentation))


def _map_of_annotations(annotations: list[dict], size: tuple[int, int]) -> np.ndarray:
    masks = {}
    for index, annotation in enumerate(annotations):
        if annotation.get("iscrowd", 0):
            continue
        rle = to_rle(annotation.get("segmentation"), size)
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
