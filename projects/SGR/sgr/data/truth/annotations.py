"""Checks of annotated instances (COCO style), made before anything is learned from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ..faults import list_faults
from .masks import OUTLINE_LIMIT, outline_length, to_rle, valid_polygons


def annotation_name(annotation: dict, index: int, file_name: str) -> str:
    """The name of an annotation in messages: its place in the record, and its id if it has one."""
    known = isinstance(annotation, dict) and "id" in annotation
    number = f" (id {annotation['id']})" if known else ""
    return f"annotation {index}{number} of {file_name}"


def checked_rle(segmentation: dict | list | None, size: tuple[int, int], name: str) -> dict | None:
    """:func:`sgr.data.truth.masks.to_rle`, with the annotation's name in the ValueError."""
    try:
        return to_rle(segmentation, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class AnnotationChecker:
    """Finds annotations that a mapper cannot use, and says what to do about them.

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
        refused: Mapping[str, str] | None = None,
    ):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            head: the node under MODEL with this NUM_CLASSES, for messages.
            boxes_needed: True: every instance needs a ``bbox``. None: it may be missing, but must
                be right if it is there. False: boxes are not checked.
            masks_used: whether to check segmentations.
            refused: the forms of segmentation that the mapper cannot use: "none" (it is missing),
                "code" (run lengths) or "polygons". The value is the end of the message: the reason
                and the way out.
        """
        self.num_classes = num_classes
        self.head = head
        self.boxes_needed = boxes_needed
        self.masks_used = masks_used
        self.refused = refused or {}

    def check(self, record: dict, size: tuple[int, int] | None = None) -> None:
        """Check the annotations of one record.

        Args:
            record: with ``file_name`` and ``annotations``.
            size: (height, width) of the image; None takes the size in the record, if it has one.

        Raises:
            ValueError: there are no annotations, or one of them has a fault. The message names
                the file and the annotation.
        """
        fault = next(self._faults(record, size), None)
        if fault:
            raise ValueError(fault)

    def check_all(self, records: Sequence[dict]) -> None:
        """Check the annotations of a dataset before the training starts.

        It reads no file and takes a few microseconds per annotation.

        Raises:
            ValueError: as in :meth:`check`; the message has the number of faults and the first few.
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
                "mapper needs a dataset of instances. Choose another INPUT.DATASET_MAPPER_NAME, or "
                "give an image without instances an empty list"
            )
            return
        if size is None and "height" in record and "width" in record:
            size = record["height"], record["width"]
        for index, annotation in enumerate(record["annotations"]):
            fault = self.fault(annotation, size)
            if fault:
                yield f"{annotation_name(annotation, index, file_name)} {fault}"

    def fault(self, annotation: dict, size: tuple[int, int] | None = None) -> str | None:
        """What is wrong with one annotation.

        Args:
            size: (height, width) of the image, if it is known.

        Returns:
            The end of a sentence that begins with the annotation's name; None if it is right.
        """
        if not isinstance(annotation, dict):
            return f"is {annotation!r}, not a dict"
        if "category_id" not in annotation:
            return f"has no category_id, only {sorted(annotation)}"
        fault = category_fault(annotation["category_id"], self.num_classes, self.head)
        crowd = annotation.get("iscrowd", 0)
        if not fault and self._uses_box(annotation):
            fault = _box_fault(annotation)
        if fault or not self.masks_used:
            return fault
        segmentation = annotation.get("segmentation")
        if segmentation is None:
            # A crowd is only left out: its box is as good as a mask.
            if "none" in self.refused and not (crowd and self.boxes_needed):
                return f"has no segmentation, only {sorted(annotation)}: {self.refused['none']}"
            return None
        is_code = isinstance(segmentation, dict)
        if "code" in self.refused and is_code and not crowd:
            return f"has a run-length code: {self.refused['code']}"
        fault = segmentation_fault(segmentation, size)
        if not fault and not is_code and self.boxes_needed and not crowd:
            fault = _enlarged_fault(annotation, size)
        if not fault and "polygons" in self.refused and segmentation and not is_code and not crowd:
            return f"has polygons: {self.refused['polygons']}"
        return fault

    def _uses_box(self, annotation: dict) -> bool:
        if self.boxes_needed is False:
            return False
        is_needed = self.boxes_needed and not annotation.get("iscrowd", 0)
        return bool(is_needed) or "bbox" in annotation


def check_outlines(records: Sequence[dict]) -> None:
    """Refuse polygons that end the process when they are drawn, for mappers of other projects.

    Raises:
        ValueError: an outline is too long. The message names the annotation.
    """
    for record in records:
        for index, annotation in enumerate(record.get("annotations", ())):
            segmentation = annotation.get("segmentation")
            for polygon in segmentation if isinstance(segmentation, list) else ():
                fault = _outline_fault(polygon, None)
                if fault:
                    name = annotation_name(annotation, index, record.get("file_name", "a record"))
                    raise ValueError(f"{name} {fault}")


def category_fault(category: Any, num_classes: int, head: str = "SEM_SEG_HEAD") -> str | None:
    """What is wrong with a category_id; None if it is an integer in ``[0, num_classes)``.

    Args:
        category: the value in a record.
        head: the node under MODEL whose NUM_CLASSES counts if the metadata name no classes.
    """
    # JSON files may have floats, strings or booleans in this place.
    is_integer = isinstance(category, (int, np.integer)) and not isinstance(category, bool)
    if is_integer and 0 <= category < num_classes:
        return None
    return (
        f"has category_id {category!r}; expected are 0 to {num_classes - 1}, by the class names in "
        f"the dataset's metadata or else by MODEL.{head}.NUM_CLASSES"
    )


def _box_fault(annotation: dict) -> str | None:
    missing = [key for key in ("bbox", "bbox_mode") if key not in annotation]
    if missing:
        return f"has no {missing[0]}, only {sorted(annotation)}"
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return f"has the bbox_mode {mode!r}; it must be BoxMode.XYWH_ABS or BoxMode.XYXY_ABS"
    try:
        left, top, third, fourth = (float(number) for number in box)
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
            "file or remove the annotation; a box with a side of zero is left out in training"
        )
    return None


def _enlarged_fault(annotation: dict, size: tuple[int, int] | None) -> str | None:
    """Detectron2 enlarges a small box to 28 pixels, and the polygons with it, to draw its mask."""
    left, top, third, fourth = (float(number) for number in annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        third, fourth = third - left, fourth - top
    scale = 28 / max(min(third, fourth), 0.1)
    for polygon in annotation["segmentation"] if scale > 1 else ():
        fault = _outline_fault(polygon, size, scale)
        if fault:
            return f"{fault}, where its bbox {annotation['bbox']!r} is enlarged to 28 pixels"
    return None


def segmentation_fault(
    segmentation: dict | list, size: tuple[int, int] | None = None
) -> str | None:
    """What is wrong with the form of an annotation's segmentation.

    This takes microseconds and makes no mask, so it can check every annotation of a dataset. It
    does not check the runs of a code (:func:`~sgr.data.truth.masks.to_rle` does). Polygons of fewer
    than three corners are no fault. Of a polygon, the parts far outside of the image do not count.

    Args:
        segmentation: polygons, or a run-length code.
        size: (height, width) of the image, if it is known.

    Returns:
        The end of a sentence that begins with the annotation's name; None if nothing is wrong.
    """
    if isinstance(segmentation, dict):
        return _code_fault(segmentation, size)
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
            # For lists of numbers, which are usual, this is much faster than an array.
            finite = math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            try:
                polygon = np.asarray(polygon)
            except (TypeError, ValueError, OverflowError):
                return "has a polygon that does not consist of numbers"
            if polygon.dtype.kind not in "iuf":  # texts, though NumPy would convert "1"
                return "has a polygon that does not consist of numbers"
            finite = bool(np.isfinite(polygon).all())
        if not finite:
            return "has a polygon with a coordinate that is not finite"
        # A bound first, which costs less.
        fault = _outline_fault(polygon, size) if size is not None else None
        if fault:
            return fault
    return None


def _outline_fault(
    polygon: Sequence[float] | np.ndarray, size: tuple[int, int] | None, scale: float = 1
) -> str | None:
    try:
        extent = float(max(polygon) - min(polygon))
    except (TypeError, ValueError):  # an empty list, pairs, or no numbers
        try:
            extent = float(np.ptp(polygon)) if np.size(polygon) else 0.0
        except (TypeError, ValueError):
            return "has a polygon that does not consist of numbers"
    # The extent gives a bound, which costs less than the length.
    if scale * extent * np.size(polygon) <= OUTLINE_LIMIT:
        return None
    length = scale * max(map(outline_length, valid_polygons([polygon], size)), default=0)
    if length <= OUTLINE_LIMIT:
        return None
    return f"has a polygon with an outline of {length:.3g} pixels, too long to draw"


def _code_fault(code: dict, size: tuple[int, int] | None) -> str | None:
    if not {"counts", "size"} <= code.keys():
        return f"has a run-length code of {sorted(code)}, not of counts and size"
    counts, code_size = code["counts"], code["size"]
    if not isinstance(counts, (bytes, str, list)):
        kind = type(counts).__name__
        return f"has a run-length code with counts of type {kind}, not a list or a string"
    if isinstance(counts, list) and not _are_numbers(counts):
        return "has a run-length code with counts that are not numbers"
    if not _are_numbers(code_size) or len(code_size) != 2:
        return f"has a run-length code of the size {code_size!r}, not of two numbers"
    if size is not None and tuple(code_size) != tuple(size):
        return (
            f"has a mask of {code_size[1]} x {code_size[0]}, but the image is "
            f"{size[1]} x {size[0]} pixels"
        )
    return None


def _are_numbers(values: Any) -> bool:
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False
