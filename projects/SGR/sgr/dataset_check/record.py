"""Checks of one record: its image and its ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import detection_utils
from detectron2.structures import BoxMode

from ..data.augmentations.labelled_image import compact
from ..data.components import ComponentMap, connected_components
from ..data.faults import FaultKind
from ..data.threads import one_opencv_thread, work_in_threads
from ..data.truth.annotations import AnnotationChecker, annotation_name, checked_rle
from ..data.truth.image_files import (
    exif_orientation,
    find_wrong_labels,
    is_turn_unproven,
    read_image,
    read_labels,
    size_fault,
)
from ..data.truth.instances import InstanceShape, draw_instances, paint_classes
from ..data.truth.records import check_image_size
from ..data.truth.segments import has_segments, read_segment_map, segment_faults
from .options import CheckOptions
from .report import Report

# More than any image has: components beyond L are counted too.
_ALL = np.iinfo(np.int16).max
_LOSSY = (".jpg", ".jpeg")


@dataclass
class RecordMaps:
    """The maps of one record, for pictures.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers, the class of each pixel; N, the number of classes, for none.
        components: the L largest.
    """

    image: np.ndarray
    labels: np.ndarray
    components: ComponentMap


def check_records(records: Sequence[dict], report: Report, *, workers: int = 1) -> None:
    """Check the records of a dataset, and add what is found to a report.

    It reads each file once and in full. The memory holds only the images that the workers are at.
    The workers are threads, because decoding and components let other threads run.

    Args:
        records: in Detectron2's standard format.
        report: the report of the dataset, changed in place.
        workers: number of threads.
    """
    check = partial(check_record, options=report.options)
    with one_opencv_thread():
        work_in_threads(check, records, report.add, workers=workers, name=report.name)
    report.add_fault_if_empty()


def check_record(record: dict, options: CheckOptions) -> Report:
    """Check a record in Detectron2's standard format.

    It reads the files of the record once and in full, and never raises for what is wrong with them.
    Beside the decoding it takes a few milliseconds for half a million pixels.
    """
    return examine_record(record, options)[0]


def examine_record(record: dict, options: CheckOptions) -> tuple[Report, RecordMaps | None]:
    """The report of :func:`check_record` and the maps; None instead if they differ in size."""
    file_name = record.get("file_name")
    report = Report(options, str(file_name) if file_name else "a record without a file name")
    try:
        maps = _examine(record, options, report)
    except Exception as error:  # records may hold anything
        why = f"{type(error).__name__}: {error}"
        report.add_fault(FaultKind.RECORD, f"the record of {report.name} cannot be used: {why}")
        maps = None
    report.num_checked, report.num_intact = 1, int(not report.faults)
    report.can_be_drawn = [maps is not None]
    report.images_with = (report.pixels > 0).astype(np.int64)
    report.images_with_instance = (report.instances > 0).astype(np.int64)
    report.images_with_thing = int(report.instances.any())
    return report, maps


def _examine(record: dict, options: CheckOptions, report: Report) -> RecordMaps | None:
    image, turn = _read_image(record, options, report)
    size = None if image is None else image.shape[:2]
    missing = [key for key in options.truth if key not in record]
    if missing:
        report.add_fault(
            FaultKind.RECORD,
            f"the record of {report.name} has no {', '.join(missing)}, unlike others of the "
            "dataset",
        )
    # All kinds of ground truth are checked; the figures are those of the first.
    shapes = _check_annotations(record, options, report, size) if "annotations" in record else []
    maps: dict[str, np.ndarray | None] = {}
    if "sem_seg_file_name" in record:
        maps["sem_seg_file_name"] = _read_labels(record, options, report, size)
    if has_segments(record):
        maps["pan_seg_file_name"] = _read_segments(record, options, report, size)
    elif "pan_seg_file_name" in record:
        report.add_fault(FaultKind.RECORD, f"the record of {report.name} has no segments_info")
    if size is not None:
        has_map = any(labels is not None for labels in maps.values())
        is_compared = has_map or {"height", "width"} <= record.keys()
        if is_turn_unproven(turn, size, is_compared):
            report.turned.append(report.name)
    labels: np.ndarray | None
    if options.truth == ("annotations",) and "annotations" in record and size is not None:
        drawn = draw_instances(shapes, size)
        labels = paint_classes(drawn, shapes, size, num_classes=len(options.thing_names))
    else:
        labels = maps.get(options.truth[0])
    if labels is None:
        return None
    components = _count(labels, options, report)
    if image is None or labels.shape != size:
        return None
    return RecordMaps(image, labels, components)


def _read_image(
    record: dict, options: CheckOptions, report: Report
) -> tuple[np.ndarray | None, int]:
    """The image and its EXIF orientation."""
    if "file_name" not in record:
        report.add_fault(FaultKind.RECORD, f"a record has no file_name, only {sorted(record)}")
        return None, 1
    file_name = record["file_name"]
    try:
        image = read_image(file_name, "RGB", sixteen_bit=options.sixteen_bit)
        turn = exif_orientation(file_name)
    except OSError as error:
        report.add_fault(FaultKind.IMAGE, str(error))
        return None, 1
    report.sizes.append(image.shape[:2])
    try:
        # A copy, because Detectron2 would add the size to the record.
        known = {key: record[key] for key in ("height", "width", "file_name") if key in record}
        check_image_size(known, image)
    except detection_utils.SizeMismatchError as error:
        report.add_fault(FaultKind.SIZE, str(error))
    except KeyError:
        message = f"the record of {file_name} has only one of height and width"
        report.add_fault(FaultKind.RECORD, message)
    return image, turn


def _check_map(
    labels: np.ndarray, file_name: str, what: str, report: Report, size: tuple[int, int] | None
) -> None:
    """Compare the sizes, and see how the file is compressed."""
    report.lossy += str(file_name).lower().endswith(_LOSSY)
    if size is not None:
        fault = size_fault(report.name, size, f"its {what} {file_name} is", labels.shape)
        if fault:
            report.add_fault(FaultKind.SIZE, fault)


def _read_labels(
    record: dict, options: CheckOptions, report: Report, size: tuple[int, int] | None
) -> np.ndarray | None:
    """(H, W) classes, N for pixels of none; None if the label map cannot be read."""
    file_name = record["sem_seg_file_name"]
    try:
        labels = read_labels(file_name)
    except (OSError, ValueError) as error:
        report.add_fault(FaultKind.LABEL_MAP, str(error))
        return None
    _check_map(labels, file_name, "label map", report, size)
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


def _read_segments(
    record: dict, options: CheckOptions, report: Report, size: tuple[int, int] | None
) -> np.ndarray | None:
    """(H, W) classes of the segments, N for crowds and pixels without a segment."""
    segments, num_classes = record["segments_info"], len(options.class_names)
    faults = dict(segment_faults(record, num_classes))
    for message in faults.values():
        report.add_fault(FaultKind.SEGMENTS, message)
    if any("id" not in segment for segment in segments):
        return None
    labels = np.full(len(segments) + 1, num_classes)  # the last for pixels without a segment
    for index, segment in enumerate(segments):
        if index in faults:
            continue
        category, is_crowd = segment["category_id"], segment.get("iscrowd", 0)
        if not is_crowd:
            labels[index] = category
        is_thing = segment.get("isthing", category in options.thing_ids)
        if is_thing and "annotations" not in options.truth:
            (report.crowds if is_crowd else report.instances)[category] += 1
    try:
        indices = read_segment_map(record)
    except (OSError, ValueError) as error:
        is_file = isinstance(error, OSError)
        report.add_fault(FaultKind.LABEL_MAP if is_file else FaultKind.SEGMENTS, str(error))
        return None
    _check_map(indices, record["pan_seg_file_name"], "panoptic picture", report, size)
    areas = np.bincount(indices.ravel() + 1, minlength=len(segments) + 1)[1:]
    report.empty_segments = int((areas == 0).sum())
    return compact(labels[indices], num_classes)


def _check_annotations(
    record: dict, options: CheckOptions, report: Report, size: tuple[int, int] | None
) -> list[InstanceShape]:
    """The shapes of the instances with a mask; counts the instances of each category."""
    if size is None and {"height", "width"} <= record.keys():
        size = record["height"], record["width"]
    # Only detectors need boxes, but a box must be right if it is there.
    checker = AnnotationChecker(num_classes=len(options.thing_names), boxes_needed=None)
    shapes = []
    for index, annotation in enumerate(record["annotations"]):
        name = annotation_name(annotation, index, report.name)
        fault = checker.fault(annotation, size)
        if fault:
            report.add_fault(FaultKind.ANNOTATIONS, f"{name} {fault}")
            continue
        try:
            segmentation = annotation.get("segmentation")
            is_code = isinstance(segmentation, dict)
            # If the size is not known, nothing is drawn, and any size will do.
            any_size = tuple(segmentation["size"]) if is_code else (1, 1)
            rle = checked_rle(segmentation, size or any_size, name)
        except ValueError as error:
            report.add_fault(FaultKind.ANNOTATIONS, str(error))
            continue
        category, is_crowd = annotation["category_id"], bool(annotation.get("iscrowd", 0))
        (report.crowds if is_crowd else report.instances)[category] += 1
        if not is_crowd:
            report.without_box += "bbox" not in annotation
            report.without_mask[category] += rle is None
        if size is not None and "bbox" in annotation:
            report.boxes_beyond += _reaches_beyond(annotation, size)
        if rle is not None:
            if size is not None and not is_crowd:
                report.empty_masks += int(mask_util.area(rle)) == 0
            shapes.append(InstanceShape(index, category, is_crowd, rle, None))
    return shapes


def _reaches_beyond(annotation: dict, size: tuple[int, int]) -> bool:
    """Whether a box ends more than a pixel outside of the image."""
    left, top, right, bottom = (float(number) for number in annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        right, bottom = left + right, top + bottom
    return left < -1 or top < -1 or right > size[1] + 1 or bottom > size[0] + 1


def _count(labels: np.ndarray, options: CheckOptions, report: Report) -> ComponentMap:
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
    report.num_components.append(len(classes))
    # They are sorted by area: training keeps the first ones.
    kept = classes[: options.max_active]
    if len(kept) < len(classes):
        indices[indices >= len(kept)] = -1
    report.components = np.bincount(kept, minlength=num_classes)
    return ComponentMap(indices, kept)
