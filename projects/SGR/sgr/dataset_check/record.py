"""What there is to say of one record: its image, its ground truth and their faults."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ..data.augmentations.labelled_image import compact
from ..data.components import ComponentMap, connected_components
from ..data.faults import Fault
from ..data.truth.annotations import AnnotationChecker, annotation_name, category_fault, checked_rle
from ..data.truth.image_files import (
    QUARTER_TURNS,
    exif_orientation,
    find_wrong_labels,
    read_image,
    read_labels,
    size_fault,
)
from ..data.truth.instances import InstanceShape, draw_instances, paint_classes
from ..data.truth.segments import read_segment_map
from .counts import Counts
from .faults import FaultKind
from .options import CheckOptions

__all__ = ["RecordMaps", "RecordReport", "check_record", "examine_record"]

# More than any image has: components beyond L are counted too.
_ALL = np.iinfo(np.int16).max
_LOSSY = (".jpg", ".jpeg")


@dataclass
class RecordReport(Counts):
    """The figures of one record, see :class:`Counts`, and what is wrong with it.

    Attributes:
        file_name: of the image.
        faults: what is wrong.
        size: (height, width) of the image; None where it cannot be read.
        turn: the orientation in the image's EXIF data, 1 to 8.
        is_turned: whether these turn the image when it is read, and no size tells whether its
            ground truth is turned alike.
        num_components: before the L largest are kept; None where there is no map of classes.
        can_be_drawn: whether there are :class:`RecordMaps`.
    """

    file_name: str
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, int] | None = None
    turn: int = 1
    is_turned: bool = False
    num_components: int | None = None
    can_be_drawn: bool = False

    def add_fault(self, kind: FaultKind, message: str) -> None:
        self.faults.append(Fault(message, kind))


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


def examine_record(record: dict, options: CheckOptions) -> tuple[RecordReport, RecordMaps | None]:
    """:func:`check_record`, and the maps that it looked at; None where they are not of one size."""
    file_name = record.get("file_name")
    report = RecordReport(options, str(file_name) if file_name else "a record without a file name")
    try:
        maps = _examine(record, options, report)
    except Exception as error:  # whatever else a record may hold
        why = f"{type(error).__name__}: {error}"
        message = f"the record of {report.file_name} cannot be used: {why}"
        report.add_fault(FaultKind.RECORD, message)
        maps = None
    report.can_be_drawn = maps is not None
    report.images_with = (report.pixels > 0).astype(np.int64)
    report.images_with_instance = (report.instances > 0).astype(np.int64)
    report.images_with_thing = int(report.instances.any())
    return report, maps


def _examine(record: dict, options: CheckOptions, report: RecordReport) -> RecordMaps | None:
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
        report.add_fault(FaultKind.RECORD, f"the record of {report.file_name} has no segments_info")
    if report.size is not None:
        from_files = (maps.get("sem_seg_file_name"), maps.get("pan_seg_file_name"))
        is_compared = {"height", "width"} <= record.keys()
        is_compared |= any(each is not None for each in from_files)
        has_sides = report.turn in QUARTER_TURNS and report.size[0] != report.size[1]
        report.is_turned = report.turn != 1 and not (is_compared and has_sides)
    labels = maps.get(options.truth[0])
    if labels is None:
        return None
    components = _count(labels, options, report)
    if image is None or labels.shape != report.size:
        return None
    return RecordMaps(image, labels, components)


def _read_image(record: dict, report: RecordReport) -> np.ndarray | None:
    if "file_name" not in record:
        report.add_fault(FaultKind.RECORD, f"a record has no file_name, only {sorted(record)}")
        return None
    file_name = record["file_name"]
    try:
        image = read_image(file_name, "RGB")
        report.turn = exif_orientation(file_name)
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


def _check_map(labels: np.ndarray, file_name: str, what: str, report: RecordReport) -> None:
    """Compare sizes, and see how the file is compressed."""
    report.lossy += str(file_name).lower().endswith(_LOSSY)
    if report.size is not None and labels.shape != report.size:
        it_is = f"its {what} {file_name} is"
        message = size_fault(report.file_name, report.size, it_is, labels.shape, report.turn)
        report.add_fault(FaultKind.SIZE, message)


def _read_labels(record: dict, options: CheckOptions, report: RecordReport) -> np.ndarray | None:
    """(H, W) classes, N for pixels of none; None where there is no label map to read."""
    file_name = record["sem_seg_file_name"]
    try:
        labels = read_labels(file_name)
    except (OSError, ValueError) as error:
        report.add_fault(FaultKind.LABEL_MAP, str(error))
        return None
    _check_map(labels, file_name, "label map", report)
    num_classes = len(options.class_names)
    unlabelled = labels == options.ignore_label
    found = find_wrong_labels(
        labels, file_name, num_classes=num_classes, ignore_label=options.ignore_label
    )
    if found:
        wrong, message = found
        values, counts = np.unique(labels[wrong], return_counts=True)
        report.outside_pixels.update(dict(zip(values.tolist(), counts.tolist())))
        report.outside_images.update(values.tolist())
        report.add_fault(FaultKind.LABELS, message)
        unlabelled |= wrong
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
    _check_map(indices, record["pan_seg_file_name"], "panoptic picture", report)
    shown = np.bincount(indices.ravel() + 1, minlength=len(segments) + 1)[1:]
    report.empty_segments = int((shown == 0).sum())
    return compact(labels[indices], num_classes)


def _check_annotations(
    record: dict, options: CheckOptions, report: RecordReport
) -> list[InstanceShape]:
    """The masks of the instances that have one; counts those of each category."""
    shapes = []
    size = report.size
    if size is None and {"height", "width"} <= record.keys():
        size = record["height"], record["width"]
    # Only detectors need boxes. One that is there must be right all the same.
    checker = AnnotationChecker(num_classes=len(options.thing_names), boxes_needed=None)
    for index, annotation in enumerate(record["annotations"]):
        name = annotation_name(annotation, index, report.file_name)
        fault = checker.fault(annotation, size)
        if fault:
            report.add_fault(FaultKind.ANNOTATIONS, f"{name} {fault}")
            continue
        category, is_crowd = annotation["category_id"], bool(annotation.get("iscrowd", 0))
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
        if size is not None and "bbox" in annotation:
            report.boxes_beyond += _reaches_beyond(annotation, size)
        if rle is not None:
            area = int(mask_util.area(rle))
            report.empty_masks += size is not None and area == 0 and not is_crowd
            shapes.append(InstanceShape(category, is_crowd, area, rle))
    return shapes


def _reaches_beyond(annotation: dict, size: tuple[int, int]) -> bool:
    """Whether a box ends more than a pixel outside of the image."""
    left, top, right, bottom = (float(each) for each in annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        right, bottom = left + right, top + bottom
    return left < -1 or top < -1 or right > size[1] + 1 or bottom > size[0] + 1


def _paint(shapes: list[InstanceShape], size: tuple[int, int], options: CheckOptions) -> np.ndarray:
    """(H, W) classes of the uppermost instances, the background among them, N for crowds."""
    # A code of another size than the image is a fault, and not among the shapes.
    drawn = draw_instances(shapes, T.TransformList([]), size)
    return paint_classes(drawn, shapes, size, num_classes=len(options.thing_names))


def _count(labels: np.ndarray, options: CheckOptions, report: RecordReport) -> ComponentMap:
    """Add the figures of a map of classes; returns its L largest components."""
    num_classes = len(options.class_names)
    counts = np.bincount(labels.ravel(), minlength=num_classes + 1)
    report.pixels = counts[:num_classes]
    report.num_pixels = labels.size
    report.num_unlabelled = int(not report.pixels.any())
    report.num_ignored = int(counts[num_classes])
    if options.truth[0] == "sem_seg_file_name":
        report.num_ignored -= report.outside_pixels.total()
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
