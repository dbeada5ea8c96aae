"""Looking at annotated instances before anything is learned from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ..faults import list_faults
from .masks import to_rle

__all__ = [
    "AnnotationChecker",
    "annotation_name",
    "category_fault",
    "checked_rle",
    "segmentation_fault",
]


def annotation_name(annotation: dict, index: int, file_name: str) -> str:
    """What messages call an annotation: its place in the record, and its id where that is known."""
    known = isinstance(annotation, dict) and "id" in annotation
    number = f" (id {annotation['id']})" if known else ""
    return f"annotation {index}{number} of {file_name}"


def checked_rle(segmentation: dict | list | None, size: tuple[int, int], name: str) -> dict | None:
    """:func:`sgr.data.truth.masks.to_rle`, whose ValueError names the annotation."""
    try:
        return to_rle(segmentation, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class AnnotationChecker:
    """Finds annotations that a mapper could not use, and says what to do about them.

    Boxes of zero area, polygons of fewer than three corners, crowds and images without annotations
    are ordinary data and no faults.

    Example::

        checker = AnnotationChecker(num_classes=80, boxes_needed=True)
        checker.check_all(records)
    """

    def __init__(
        self,
        *,
        num_classes: int,
        head: str = "SEM_SEG_HEAD",
        boxes_needed: bool | None = False,
        masks_used: bool = True,
        masks_needed: str = "",
        polygons_needed: str = "",
        codes_needed: str = "",
    ):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            head: the node under MODEL whose NUM_CLASSES is meant, for the message.
            boxes_needed: every instance needs a ``bbox``. False: boxes are not looked at. None:
                they may lack, and those that are there are looked at.
            masks_used: segmentations are looked at.
            masks_needed: why every instance needs a ``segmentation``, and the way out, as the
                message has it; "" where it may lack.
            polygons_needed: why run-length codes do not do, and the way out; "" where they do.
            codes_needed: the same of polygons.
        """
        self.num_classes = num_classes
        self.head = head
        self.boxes_needed = boxes_needed
        self.masks_used = masks_used
        self.masks_needed = masks_needed
        self.polygons_needed = polygons_needed
        self.codes_needed = codes_needed

    def check(self, record: dict, size: tuple[int, int] | None = None) -> None:
        """Look at the annotations of one record.

        Args:
            record: with ``file_name`` and ``annotations``.
            size: (height, width) of the image; None takes those of the record, if it has any.

        Raises:
            ValueError: there are no annotations, or one of them has a fault. The message names
                the file and the annotation.
        """
        fault = next(self._faults(record, size), None)
        if fault:
            raise ValueError(fault)

    def check_all(self, records: Sequence[dict]) -> None:
        """Look at the annotations of a dataset, before the training starts.

        Reads no file. Costs a few microseconds per annotation.

        Raises:
            ValueError: as in :meth:`check`; the message names the first faults and their number.
        """
        faults = [fault for record in records for fault in self._faults(record)]
        if len(faults) == 1:
            raise ValueError(faults[0])
        if faults:
            raise ValueError(f"{len(faults)} faults in the annotations:\n{list_faults(faults)}")

    def _faults(self, record: dict, size: tuple[int, int] | None = None) -> Iterator[str]:
        file_name = record.get("file_name", "a record without a file name")
        if "annotations" not in record:
            yield (
                f"the record of {file_name} has no annotations, only {sorted(record)}: this "
                "mapper needs a dataset of instances; another is for INPUT.DATASET_MAPPER_NAME, "
                "or an empty list for an image without any"
            )
            return
        if size is None and "height" in record and "width" in record:
            size = record["height"], record["width"]
        for index, annotation in enumerate(record["annotations"]):
            fault = self.fault(annotation, size)
            if fault:
                yield f"{annotation_name(annotation, index, file_name)} {fault}"

    def fault(self, annotation: dict, size: tuple[int, int] | None = None) -> str | None:
        """What is wrong with one annotation; None where nothing is.

        Args:
            size: (height, width) of the image, if known.

        Returns:
            What would follow "the annotation ..." in a sentence.
        """
        if not isinstance(annotation, dict):
            return f"is {annotation!r}, not a dict"
        if "category_id" not in annotation:
            return f"has no category_id, only {sorted(annotation)}"
        fault = category_fault(annotation["category_id"], self.num_classes, self.head)
        crowd = annotation.get("iscrowd", 0)
        # Of a crowd, which is only left out, a box does as well as a mask, and nothing will do.
        boxes_used = (
            self.boxes_needed
            and not crowd
            or ("bbox" in annotation and self.boxes_needed is not False)
        )
        if not fault and boxes_used:
            fault = _box_fault(annotation)
        if fault or not self.masks_used:
            return fault
        segmentation = annotation.get("segmentation")
        if segmentation is None:
            if self.masks_needed and not (crowd and self.boxes_needed):
                return f"has no segmentation, only {sorted(annotation)}: {self.masks_needed}"
            return None
        if self.polygons_needed and not crowd and isinstance(segmentation, dict):
            return f"has a run-length code: {self.polygons_needed}"
        fault = segmentation_fault(segmentation, size)
        polygons = not fault and segmentation and not isinstance(segmentation, dict)
        if self.codes_needed and polygons and not crowd:
            return f"has polygons: {self.codes_needed}"
        return fault


def _box_fault(annotation: dict) -> str | None:
    missing = [key for key in ("bbox", "bbox_mode") if key not in annotation]
    if missing:
        return f"has no {missing[0]}, only {sorted(annotation)}"
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return f"has the bbox_mode {mode!r}; it must be BoxMode.XYWH_ABS or BoxMode.XYXY_ABS"
    try:
        left, top, third, fourth = (float(each) for each in box)
    except (TypeError, ValueError):
        return f"has the bbox {box!r}, not four numbers"
    if not math.isfinite(left + top + third + fourth):
        return f"has the bbox {box!r} with a number that is not finite"
    if mode == BoxMode.XYXY_ABS:
        third, fourth = third - left, fourth - top
    if third < 0 or fourth < 0:
        # Detectron2 would silently train on the box mirrored at its corner.
        return (
            f"has the bbox {box!r} ({mode.name}), which is {third:g} x {fourth:g}: correct the "
            "file or remove the annotation; a side of zero, though, is left out in training"
        )
    return None


def category_fault(category: Any, num_classes: int, head: str = "SEM_SEG_HEAD") -> str | None:
    """What is wrong with a category_id, None if it is an integer in ``[0, num_classes)``.

    Args:
        category: what a record has.
        num_classes: number of classes.
        head: whose NUM_CLASSES under MODEL counts where the metadata name no classes.
    """
    # JSON has other things than integers too.
    is_integer = isinstance(category, (int, np.integer)) and not isinstance(category, bool)
    if is_integer and 0 <= category < num_classes:
        return None
    return (
        f"has category_id {category!r}; expected are 0 to {num_classes - 1}, by the class names in "
        f"the metadata of DATASETS.TRAIN or else by MODEL.{head}.NUM_CLASSES"
    )


def segmentation_fault(
    segmentation: dict | list, size: tuple[int, int] | None = None
) -> str | None:
    """What is wrong with the segmentation of an annotation, seen from its form.

    Cheap enough for every annotation of a dataset: microseconds each, and it makes no mask. It does
    not check the runs of a code (:func:`~sgr.data.truth.masks.to_rle` does), and polygons of fewer
    than three corners are no fault.

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
