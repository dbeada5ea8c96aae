"""The ground truth of one image, read from a record in Detectron2's standard dataset format.

Label maps are read from ``sem_seg_file_name``, panoptic segments from ``pan_seg_file_name`` and
``segments_info``, instances from ``annotations`` (COCO style).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from detectron2.data import detection_utils

from ..faults import shorten
from .image_files import check_labels, read_labels, size_fault
from .instances import draw_instances, paint, read_shapes
from .masks import valid_polygons
from .segments import has_segments, read_segment_map, segment_faults, segment_labels


def apply_test_transform(input_: dict, labels: np.ndarray) -> np.ndarray:
    """Crop and resize a map of the ground truth in the way the test mapper did with the image.

    Without a "ground_truth_transform" in the input, the map stays as it is.

    Args:
        input_: the test mapper's result for the image. "ground_truth_transform" is the Detectron2
            ``Transform`` or ``TransformList`` that it applied to the image file.
        labels: (H, W) values of any type, at the size of the image file.

    Returns:
        (h, w) values of the same type. Each is the value of the nearest pixel in ``labels``.

    Raises:
        ValueError: the map is not of the size of the image file.
    """
    transform = input_.get("ground_truth_transform")
    if transform is None:
        return labels
    # Detectron2 resizes bytes by the centres of pixels, but larger numbers by their corners. To be
    # independent of the type, this transforms the numbers of the pixels as four bytes each.
    pixels = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)
    try:
        moved = transform.apply_segmentation(pixels[..., None].view(np.uint8))
    except AssertionError as error:  # Detectron2's transforms check the size
        raise ValueError(
            f"the ground truth of {input_.get('file_name', 'an image')} is {labels.shape[0]} x "
            f"{labels.shape[1]} pixels (height x width), and the image is not"
        ) from error
    return labels.ravel()[np.ascontiguousarray(moved).view(np.int32)[..., 0]]


def check_sizes(records: Iterable[dict]) -> None:
    """Check the ``height`` and ``width`` of records, where they have both.

    Raises:
        ValueError: they are not integers of at least 1. The message names the first such file.
    """
    for record in records:
        size = record.get("height", 1), record.get("width", 1)
        if not all(isinstance(side, (int, np.integer)) and side >= 1 for side in size):
            raise ValueError(
                f"the record of {record.get('file_name', 'an image')} has the height and width "
                f"{shorten(size)}; they must be numbers of pixels"
            )


def check_image_size(record: dict, image: np.ndarray) -> None:
    """Compare an image (H, W, ...) with its record, and set the record's size if it has none.

    Raises:
        SizeMismatchError (a ValueError): they differ. The message names the file.
        KeyError: the record has only one of ``height`` and ``width``.
    """
    try:
        detection_utils.check_image_size(record, image)
    except detection_utils.SizeMismatchError as error:
        raise detection_utils.SizeMismatchError(
            f"image {record.get('file_name', '')} is {image.shape[1]} x {image.shape[0]} pixels, "
            f"and its record says {shorten(record['width'])} x {shorten(record['height'])}: "
            "correct the record"
        ) from error


def file_size(record: dict, input_: dict) -> tuple[int, int]:
    """(height, width) of an image's file.

    Args:
        record: the record of the dataset; its "height" and "width" count if it has them.
        input_: the test mapper's result, with the "image" (C, H, W).
    """
    transform = input_.get("ground_truth_transform")
    if transform is None:
        default = dict(zip(("height", "width"), input_["image"].shape[-2:]))
        record = {**default, **input_, **record}
    elif not {"height", "width"} <= record.keys():
        # The sizes in the input are those of the result. The first transform knows the file's.
        first = getattr(transform, "transforms", [transform])[0]
        record = {"height": first.h, "width": first.w}
    return int(record["height"]), int(record["width"])


def find_image(images: Mapping[str, Any], file_name: str, dataset_name: str) -> Any:
    """The entry of an image by its file name.

    Raises:
        KeyError: the dataset has no such image.
    """
    if file_name not in images:
        raise KeyError(
            f"{file_name} is not an image of {dataset_name}: the loader and the evaluator must be "
            "of the same dataset"
        )
    return images[file_name]


def read_label_map(
    record: dict,
    *,
    num_classes: int | None = None,
    ignore_label: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read and check the label map of a record with ``sem_seg_file_name``.

    Args:
        num_classes: classes are in ``[0, num_classes)``; None does not check the labels.
        ignore_label: the label of unlabelled pixels; None if the dataset has none.
        size: (height, width) of the image; None does not check the size.

    Returns:
        (H, W) uint8 or int32 labels, as in the file.

    Raises:
        FileNotFoundError, OSError: the file is missing or damaged.
        ValueError: the size differs from the image's, or there are labels of no class.
    """
    label_file = record["sem_seg_file_name"]
    labels = read_labels(label_file)
    if size is not None:
        it_is = f"its label map {label_file} is"
        fault = size_fault(record["file_name"], size, it_is, labels.shape)
        if fault:
            raise ValueError(fault)
    if num_classes is not None:
        check_labels(labels, label_file, num_classes=num_classes, ignore_label=ignore_label)
    return labels


def read_segments(
    record: dict, *, num_classes: int | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read and check the segments of a record with ``pan_seg_file_name`` and ``segments_info``.

    Args:
        num_classes: categories are in ``[0, num_classes)``; None does not check them.
        size: (height, width) of the image; None does not check the size.

    Returns:
        (H, W) int32, see :func:`sgr.data.truth.segments.read_segment_map`.

    Raises:
        FileNotFoundError, OSError: the picture is missing or damaged.
        ValueError: the size differs from the image's, a category does not exist, or the picture has
            ids without a segment.
    """
    if num_classes is not None:
        for _, fault in segment_faults(record, num_classes):
            raise ValueError(fault)
    indices = read_segment_map(record)
    if size is not None:
        it_is = f"its panoptic picture {record['pan_seg_file_name']} is"
        wrong_size = size_fault(record["file_name"], size, it_is, indices.shape)
        if wrong_size:
            raise ValueError(wrong_size)
    return indices


def has_classes(record: dict) -> bool:
    """Whether the record tells the class of each pixel.

    It does with ``sem_seg_file_name``, or with ``pan_seg_file_name`` and ``segments_info``.
    """
    return "sem_seg_file_name" in record or has_segments(record)


def read_class_map(
    record: dict, *, num_classes: int | None = None, ignore_label: int | None = None
) -> np.ndarray:
    """Read the class of each pixel.

    It is taken from ``sem_seg_file_name``, or else from ``pan_seg_file_name`` and
    ``segments_info``. Crowds and pixels without a segment are ignored.

    Args:
        record: a dataset record, see :func:`has_classes`.
        num_classes: classes are in ``[0, num_classes)``; None if the number is not known.
        ignore_label: the label of unlabelled pixels in ``sem_seg_file_name``; None if the dataset
            has none.

    Returns:
        (H, W) integers, -1 for ignored pixels.

    Raises:
        FileNotFoundError, OSError: a file is missing or damaged.
        ValueError: there are other classes, or the panoptic picture has ids without a segment.
    """
    if "sem_seg_file_name" in record:
        labels = read_label_map(record, num_classes=num_classes, ignore_label=ignore_label)
        ignored = labels == ignore_label
        labels = labels.astype(np.int32)
        labels[ignored] = -1
        return labels
    indices = read_segments(record, num_classes=num_classes)
    return segment_labels(record["segments_info"], ignore_value=-1)[indices]


def has_instances(record: dict) -> bool:
    """Whether the record tells which pixels belong to which thing.

    It does with ``annotations``, or with ``pan_seg_file_name`` and ``segments_info``.
    """
    return "annotations" in record or has_segments(record)


def read_instance_map(
    record: dict, size: tuple[int, int], thing_ids: Collection[int] = frozenset()
) -> np.ndarray:
    """Read one map of the instances of things.

    It is taken from ``annotations``, or else from ``pan_seg_file_name`` and ``segments_info``. The
    smaller of two overlapping instances lies on top, see
    :func:`sgr.data.truth.instances.draw_instances`. Crowds are no instances: their pixels belong to
    nothing unless an instance covers them. Instances with a box but no mask are left out, because a
    box is mostly background and would take the pixels of its neighbours; see
    :func:`count_without_mask`.

    Args:
        record: a dataset record, see :func:`has_instances`.
        size: (height, width) of the image, for annotations.
        thing_ids: the categories of things, for segments without ``isthing``.

    Returns:
        (H, W) int32: the instance's index in ``annotations`` or ``segments_info``, or -1.

    Raises:
        FileNotFoundError, OSError: the panoptic picture is missing or damaged.
        ValueError: a mask is not of the image's size, or the picture has ids without a segment.
    """
    if "annotations" in record:
        file_name = record.get("file_name", "a record without a file name")
        shapes = read_shapes(
            record["annotations"], size=size, file_name=file_name, with_crowds=False
        )
        drawn = draw_instances(shapes, size)
        return paint(drawn, [shape.index for shape in shapes], size, background=-1)
    segments = record["segments_info"]
    things = np.full(len(segments) + 1, -1, np.int32)  # the last is for pixels without a segment
    for index, segment in enumerate(segments):
        is_thing = segment.get("isthing", segment["category_id"] in thing_ids)
        if is_thing and not segment.get("iscrowd", 0):
            things[index] = index
    return things[read_segments(record)]


def count_without_mask(record: dict) -> int:
    """Count the instances in ``annotations``, without crowds, that have no mask.

    They have no ``segmentation``, or no polygon of three corners in it.
    """
    return sum(
        not annotation.get("iscrowd", 0) and not _has_mask(annotation.get("segmentation"))
        for annotation in record.get("annotations", ())
    )


def _has_mask(segmentation: dict | list | None) -> bool:
    return isinstance(segmentation, dict) or bool(valid_polygons(segmentation))
