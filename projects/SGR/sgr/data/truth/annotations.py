"""Looking at annotated instances before anything is learned from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from detectron2.structures import BoxMode

from ..faults import list_faults
from ..mappers.concept_mapper import category_fault
from .segments import segmentation_fault, to_rle

__all__ = ["AnnotationChecker", "annotation_name", "checked_rle"]


def annotation_name(annotation: dict, index: int, file_name: str) -> str:
    """What messages call an annotation: its place in the record, and its id where that is known."""
    known = isinstance(annotation, dict) and "id" in annotation
    number = f" (id {annotation['id']})" if known else ""
    return f"annotation {index}{number} of {file_name}"


def checked_rle(segmentation: dict | list | None, size: tuple[int, int], name: str) -> dict | None:
    """:func:`sgr.data.truth.segments.to_rle`, whose ValueError names the annotation."""
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
