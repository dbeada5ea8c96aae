"""What there is to say of one record: its image, its ground truth and their faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image

from ..components import ComponentMap, connected_components
from ..image_files import check_labels, read_image, read_labels
from ..mappers.annotations import AnnotationChecker, annotation_name, checked_rle
from ..mappers.concept_mapper import category_fault, size_of
from ..mappers.instance_shapes import InstanceShape, draw_instances, paint_classes
from ..mappers.labelled_image import compact
from ..segments import read_segment_map
from .faults import Fault, FaultKind
from .options import CheckOptions

__all__ = ["RecordMaps", "RecordReport", "check_record", "examine_record"]

_EXIF_ORIENTATION = 0x0112
# More than any image has: components beyond L are counted too.
_ALL = np.iinfo(np.int16).max


@dataclass
class RecordReport:
    """The figures of one record; N classes, M categories of things (see :class:`CheckOptions`).

    Attributes:
        file_name: of the image.
        faults: what is wrong.
        size: (height, width) of the image; None where it cannot be read.
        is_turned: whether the orientation in its EXIF data turns the image when it is read.
        pixels: (N,) int64, of each class; zeros where the ground truth cannot be read.
        ignored: pixels of no class, but for those of ``outside``.
        outside: labels of the label map that are neither a class nor ignored -> pixels.
        num_components: before the L largest are kept; None where there is no map of classes.
        components: (N,) int64, of each class, of the L largest.
        instances, crowds, without_mask: (M,) int64, of each category; the last are instances of
            which a box is known at most, and are among the first.
        without_box: instances of ``annotations`` that have none.
        empty_segments: panoptic segments without a pixel.
    """

    file_name: str
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, int] | None = None
    is_turned: bool = False
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    outside: dict[int, int] = field(default_factory=dict)
    num_components: int | None = None
    components: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    instances: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    crowds: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    without_mask: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    without_box: int = 0
    empty_segments: int = 0

    def add_fault(self, kind: FaultKind, message: str) -> None:
        self.faults.append(Fault(kind, message))


@dataclass
class RecordMaps:
    """What was looked at, for pictures.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers, the class of each pixel, N where it has none.
        components: the L largest.
    """

    image: np.ndarray
    labels: np.ndarray
    components: ComponentMap


def check_record(record: dict, options: CheckOptions) -> RecordReport:
    """The figures and faults of a record in Detectron2's standard format.

    Reads its files once, in full, and raises nothing for whatever is wrong with them. Costs a few
    milliseconds beside the decoding for an image of half a million pixels.
    """
    return examine_record(record, options)[0]


def examine_record(
    record: dict, options: CheckOptions
) -> tuple[RecordReport, RecordMaps | None]:
    """:func:`check_record`, and the maps that it looked at; None where they are not of one size."""
    report = RecordReport(str(record.get("file_name", "a record without a file name")))
    report.pixels = np.zeros(len(options.class_names), np.int64)
    report.components = np.zeros(len(options.class_names), np.int64)
    for name in ("instances", "crowds", "without_mask"):
        setattr(report, name, np.zeros(len(options.thing_names), np.int64))

    image = _read_image(record, report)
    missing = [key for key in options.truth if key not in record]
    if missing:
        report.add_fault(
            FaultKind.RECORD,
            f"the record of {report.file_name} has no {', '.join(missing)}, unlike others of the "
            "dataset",
        )
    maps = {}  # all are checked, one is counted
    if "annotations" in record:
        shapes = _check_annotations(record, options, report)
        if options.truth == ("annotations",) and report.size is not None:
            maps["annotations"] = _paint(shapes, report.size, options)
    if "sem_seg_file_name" in record:
        maps["sem_seg_file_name"] = _read_labels(record, options, report)
    if {"pan_seg_file_name", "segments_info"} <= record.keys():
        maps["pan_seg_file_name"] = _read_segments(record, options, report)
    elif "pan_seg_file_name" in record:
        report.add_fault(
            FaultKind.RECORD, f"the record of {report.file_name} has no segments_info"
        )
    labels = maps.get(options.truth[0])
    if labels is None:
        return report, None
    components = _count(labels, options, report)
    if image is None or labels.shape != report.size:
        return report, None
    return report, RecordMaps(image, labels, components)


def _read_image(record: dict, report: RecordReport) -> np.ndarray | None:
    if "file_name" not in record:
        report.add_fault(FaultKind.RECORD, f"a record has no file_name, only {sorted(record)}")
        return None
    file_name = record["file_name"]
    try:
        image = read_image(file_name, "RGB")
        with Image.open(file_name) as opened:
            report.is_turned = opened.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9)
    except OSError as error:
        report.add_fault(FaultKind.IMAGE, str(error))
        return None
    report.size = image.shape[:2]
    try:
        # Detectron2 would add the size to the record.
        known = {key: record[key] for key in ("height", "width", "file_name") if key in record}
        detection_utils.check_image_size(known, image)
    except detection_utils.SizeMismatchError as error:
        report.add_fault(FaultKind.SIZE, str(error))
    except KeyError:
        message = f"the record of {file_name} has only one of height and width"
        report.add_fault(FaultKind.RECORD, message)
    return image


def _check_size(labels: np.ndarray, what: str, report: RecordReport) -> None:
    if report.size is None or labels.shape == report.size:
        return
    message = (
        f"image {report.file_name} is {size_of(report.size)} pixels, but its {what} is "
        f"{size_of(labels.shape)}"
    )
    if report.is_turned and labels.shape == report.size[::-1]:
        message += (
            "; the orientation in its EXIF data turns the image and not the ground truth: remove it"
        )
    report.add_fault(FaultKind.SIZE, message)


def _read_labels(record: dict, options: CheckOptions, report: RecordReport) -> np.ndarray | None:
    """(H, W) classes, N for pixels of none; None where there is no label map to read."""
    file_name = record["sem_seg_file_name"]
    try:
        labels = read_labels(file_name)
    except (OSError, ValueError) as error:
        report.add_fault(FaultKind.LABEL_MAP, str(error))
        return None
    _check_size(labels, f"label map {file_name}", report)
    num_classes = len(options.class_names)
    ignored = labels == options.ignore_label
    wrong = (labels >= num_classes) | (labels < 0)
    unlabelled = wrong | ignored
    wrong &= ~ignored
    if wrong.any():
        values, counts = np.unique(labels[wrong], return_counts=True)
        report.outside = dict(zip(values.tolist(), counts.tolist()))
        try:
            check_labels(
                labels, file_name, num_classes=num_classes, ignore_label=options.ignore_label
            )
        except ValueError as error:
            report.add_fault(FaultKind.LABELS, str(error))
    return compact(np.where(unlabelled, num_classes, labels), num_classes)


def _read_segments(record: dict, options: CheckOptions, report: RecordReport) -> np.ndarray | None:
    """(H, W) classes of the segments, N for crowds and where there is no segment."""
    segments, num_classes = record["segments_info"], len(options.class_names)
    labels = np.full(len(segments) + 1, num_classes)  # the last for pixels without a segment
    for index, segment in enumerate(segments):
        missing = [key for key in ("id", "category_id") if key not in segment]
        if missing:
            message = f"segment {index} of {report.file_name} has no {missing[0]}"
            report.add_fault(FaultKind.SEGMENTS, message)
            return None
        category = segment["category_id"]
        fault = category_fault(category, num_classes)
        if fault:
            message = f"segment {segment['id']} of {report.file_name} {fault}"
            report.add_fault(FaultKind.SEGMENTS, message)
            continue
        is_crowd = segment.get("iscrowd", 0)
        if not is_crowd:
            labels[index] = category
        is_thing = segment.get("isthing", category in options.thing_ids)
        if is_thing and "annotations" not in options.truth:
            (report.crowds if is_crowd else report.instances)[category] += 1
    try:
        indices = read_segment_map(record)
    except OSError as error:
        report.add_fault(FaultKind.LABEL_MAP, str(error))
        return None
    except ValueError as error:
        report.add_fault(FaultKind.SEGMENTS, str(error))
        return None
    _check_size(indices, f"panoptic picture {record['pan_seg_file_name']}", report)
    shown = np.bincount(indices.ravel() + 1, minlength=len(segments) + 1)[1:]
    report.empty_segments = int((shown == 0).sum())
    return compact(labels[indices], num_classes)


class _AnnotationSorter(AnnotationChecker):
    """Tells the annotations that mappers could use from those that they would refuse."""

    def usable(
        self, record: dict, size: tuple[int, int] | None, report: RecordReport
    ) -> Iterator[tuple[int, dict]]:
        """Annotations without a fault, by their places; the faults of the others are reported."""
        for index, annotation in enumerate(record["annotations"]):
            # Only detectors need boxes. One that is there must be right all the same.
            self.boxes_needed = "bbox" in annotation
            fault = self._fault(annotation, size)
            if fault is None:
                yield index, annotation
            else:
                name = annotation_name(annotation, index, report.file_name)
                report.add_fault(FaultKind.ANNOTATIONS, f"{name} {fault}")


def _check_annotations(
    record: dict, options: CheckOptions, report: RecordReport
) -> list[InstanceShape]:
    """The masks of the instances that have one; counts those of each category."""
    shapes = []
    size = report.size
    if size is None and {"height", "width"} <= record.keys():
        size = record["height"], record["width"]
    sorter = _AnnotationSorter(num_classes=len(options.thing_names))
    for index, annotation in sorter.usable(record, size, report):
        category, is_crowd = annotation["category_id"], bool(annotation.get("iscrowd", 0))
        name = annotation_name(annotation, index, report.file_name)
        segmentation = annotation.get("segmentation")
        try:
            # Nothing is drawn where the size is not known: any will do.
            rle = checked_rle(segmentation, size or (1, 1), name)
        except ValueError as error:
            report.add_fault(FaultKind.ANNOTATIONS, str(error))
            continue
        (report.crowds if is_crowd else report.instances)[category] += 1
        if not is_crowd:
            report.without_box += "bbox" not in annotation
            report.without_mask[category] += rle is None
        if rle is not None:
            shapes.append(InstanceShape(category, is_crowd, int(mask_util.area(rle)), rle))
    return shapes


def _paint(
    shapes: list[InstanceShape], size: tuple[int, int], options: CheckOptions
) -> np.ndarray:
    """(H, W) classes of the uppermost instances, the background among them, N for crowds."""
    # A code of another size than the image is a fault, and not among the shapes.
    drawn = draw_instances(shapes, T.TransformList([]), size)
    return paint_classes(drawn, shapes, size, num_classes=len(options.thing_names))


def _count(labels: np.ndarray, options: CheckOptions, report: RecordReport) -> ComponentMap:
    """Add the figures of a map of classes; returns its L largest components."""
    num_classes = len(options.class_names)
    counts = np.bincount(labels.ravel(), minlength=num_classes + 1)
    report.pixels = counts[:num_classes]
    report.ignored = int(counts[num_classes])
    if options.truth[0] == "sem_seg_file_name":
        report.ignored -= sum(report.outside.values())
    indices, classes = connected_components(
        labels,
        ignore_label=num_classes,
        min_area_ratio=options.min_area_ratio,
        kernel_size=options.kernel_size,
        max_components=_ALL,
    )
    report.num_components = len(classes)
    # They are sorted by area: the first are those that training keeps.
    kept = classes[: options.max_active]
    if len(kept) < len(classes):
        indices[indices >= len(kept)] = -1
    report.components = np.bincount(kept, minlength=num_classes)
    return ComponentMap(indices, kept)
