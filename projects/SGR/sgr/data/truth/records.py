"""Classes and instances of one image at its own resolution, read for evaluation.

Records are dicts in Detectron2's standard dataset format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from .image_files import check_labels, read_labels
from .masks import to_rle, valid_polygons
from .segments import read_segment_map, segment_labels

__all__ = [
    "as_tested",
    "count_without_mask",
    "file_size",
    "find_image",
    "has_classes",
    "has_instances",
    "read_class_map",
    "read_instance_map",
]


def as_tested(input_: dict, labels: np.ndarray) -> np.ndarray:
    """A map of the ground truth as the model's image was made of the file, in register with it.

    Args:
        input_: what the test mapper made of the record. Its "ground_truth_transform", a Detectron2
            ``Transform`` or ``TransformList``, is what it did to the image; where there is none,
            the map stays at the resolution of the file.
        labels: (H, W) of any type, H and W those of the image file.

    Returns:
        (h, w) of the same type, each value that of the pixel of ``labels`` nearest to it.

    Raises:
        ValueError: the map is not of the image's size.
    """
    transform = input_.get("ground_truth_transform")
    if transform is None:
        return labels
    # Detectron2 moves bytes like images, but not larger numbers (see LabelledImage): so that the
    # type does not matter, this moves the pixels' numbers, as pictures of four bytes.
    pixels = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)
    try:
        moved = transform.apply_segmentation(pixels[..., None].view(np.uint8))
    except AssertionError as error:  # Detectron2's transforms know what size they are for.
        raise ValueError(
            f"the ground truth of {input_.get('file_name', 'an image')} is {labels.shape[0]} x "
            f"{labels.shape[1]} pixels (height x width), and the image is not"
        ) from error
    return labels.ravel()[np.ascontiguousarray(moved).view(np.int32)[..., 0]]


def file_size(record: dict, input_: dict) -> tuple[int, int]:
    """(height, width) of an image's file.

    Args:
        record: of the dataset; its "height" and "width" count where it has them.
        input_: what the test mapper made of it, with the "image" (C, H, W).
    """
    transform = input_.get("ground_truth_transform")
    if transform is None:
        default = dict(zip(("height", "width"), input_["image"].shape[-2:]))
        record = {**default, **input_, **record}
    elif not {"height", "width"} <= record.keys():
        # The input's are those of the result. The first of the transforms knows what it is for.
        first = getattr(transform, "transforms", [transform])[0]
        record = {"height": first.h, "width": first.w}
    return int(record["height"]), int(record["width"])


def find_image(images: Mapping[str, Any], file_name: str, dataset_name: str) -> Any:
    """What is kept of an image, by its file's name.

    Raises:
        KeyError: the dataset has no such image.
    """
    if file_name not in images:
        raise KeyError(
            f"{file_name} is not an image of {dataset_name}: the loader and the evaluator must be "
            "of the same dataset"
        )
    return images[file_name]


def has_classes(record: dict) -> bool:
    """Whether the record says of which class the pixels are.

    It has ``sem_seg_file_name``, or else ``pan_seg_file_name`` and ``segments_info``.
    """
    return "sem_seg_file_name" in record or _has_segments(record)


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
    """Whether the record says which pixels belong to which thing.

    It has ``annotations``, or else ``pan_seg_file_name`` and ``segments_info``.
    """
    return "annotations" in record or _has_segments(record)


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


def _has_segments(record: dict) -> bool:
    return {"pan_seg_file_name", "segments_info"} <= record.keys()


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
