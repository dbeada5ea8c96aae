"""A dataset's figures: the sums of its records'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .faults import Fault
from .options import CheckOptions
from .record import RecordReport, check_record

__all__ = ["DatasetReport", "check_records", "spread"]

# Names that a warning gives.
_SHOWN = 10


class DatasetReport:
    """What the reports of single records add up to. Keeps a few numbers of each.

    Attributes:
        name: of the dataset.
        options: see :class:`CheckOptions`; N classes, M categories of things.
        num_records: of the whole dataset; ``num_checked`` is how many reports were added.
        faults: of all records, in their order, and whatever else is found.
        warnings: sentences about what may be wanted, or not; see :meth:`all_warnings`.
        turned: images that their EXIF data turn.
        sizes: (height, width) of each image that can be read.
        pixels, components: (N,) int64, see :class:`RecordReport`.
        images_with: (N,) int64, images that have a pixel of the class.
        ignored, num_unlabelled: pixels of no class; images that have no other.
        outside: label -> [images, pixels], of labels that are no class.
        num_components: of each image that has a map of classes.
        instances, crowds, without_mask: (M,) int64.
        images_with_instance, images_with_thing: (M,) int64, and of any category.
        without_box, empty_segments: see :class:`RecordReport`.
        intact: places, in the order in which they were added, of records without a fault.
    """

    def __init__(self, name: str, options: CheckOptions, num_records: int) -> None:
        self.name = name
        self.options = options
        self.num_records = num_records
        self.num_checked = 0
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self.turned: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.ignored = self.num_unlabelled = 0
        self.outside: dict[int, list[int]] = {}
        self.num_components: list[int] = []
        num_classes, num_things = len(options.class_names), len(options.thing_names)
        self.pixels, self.components, self.images_with = np.zeros((3, num_classes), np.int64)
        self.instances, self.crowds, self.without_mask, self.images_with_instance = np.zeros(
            (4, num_things), np.int64
        )
        self.images_with_thing = 0
        self.without_box = self.empty_segments = 0
        self.intact: list[int] = []

    def add(self, report: RecordReport) -> None:
        """Add the report of one record."""
        if not report.faults:
            self.intact.append(self.num_checked)
        self.num_checked += 1
        self.faults += report.faults
        if report.is_turned:
            self.turned.append(report.file_name)
        if report.size is not None:
            self.sizes.append(report.size)
        self.ignored += report.ignored
        self.pixels += report.pixels
        self.components += report.components
        self.images_with += report.pixels > 0
        if report.num_components is not None:
            self.num_components.append(report.num_components)
            self.num_unlabelled += not report.pixels.any()
        for label, pixels in report.outside.items():
            seen = self.outside.setdefault(label, [0, 0])
            seen[0] += 1
            seen[1] += pixels
        self.instances += report.instances
        self.crowds += report.crowds
        self.without_mask += report.without_mask
        self.images_with_instance += report.instances > 0
        self.images_with_thing += bool(report.instances.any())
        self.without_box += report.without_box
        self.empty_segments += report.empty_segments

    @property
    def share_ignored(self) -> float:
        """Share of the pixels that count for nothing, of all that are looked at; nan of none."""
        pixels = self.ignored + int(self.pixels.sum())
        return self.ignored / pixels if pixels else float("nan")

    @property
    def share_over(self) -> float:
        """Share of the images with more than L components; nan of none."""
        if not self.num_components:
            return float("nan")
        return float(np.mean(np.array(self.num_components) > self.options.max_active))

    def never_there(self) -> list[str]:
        """Names of the classes without a pixel, or, of things beside label maps, an instance."""
        options = self.options
        names = [options.class_names[index] for index in np.flatnonzero(self.images_with == 0)]
        if options.truth != ("annotations",) and "annotations" in options.truth:
            lacking = np.flatnonzero(self.instances + self.crowds == 0)
            names += [f"{options.thing_names[index]} (as instance)" for index in lacking]
        return names

    def all_warnings(self) -> list[str]:
        """``warnings``, and those that follow from the figures."""
        warnings = list(self.warnings)
        never = self.never_there()
        if never and self.num_checked:
            where = "the images looked at" if self.num_checked < self.num_records else "any image"
            warnings.append(f"classes that do not occur in {where}: {_first(never)}")
        small = np.flatnonzero((self.images_with > 0) & (self.components == 0))
        if len(small):
            names = [self.options.class_names[index] for index in small]
            warnings.append(
                "classes without a component that is kept, which supervise no concept: "
                f"{_first(names)}"
            )
        if self.outside and not self.images_with[0] and min(self.outside) > 0:
            warnings.append(
                f"label 0, {self.options.class_names[0]}, does not occur, but labels beyond the "
                "classes do: do the labels count from 1?"
            )
        if self.turned:
            warnings.append(
                "images turned when read, by the orientation in their EXIF data (see that their "
                f"ground truth is turned alike): {_first(self.turned)}"
            )
        for count, what in (
            (self.num_unlabelled, "images without a labelled pixel"),
            (int(self.without_mask.sum()), "instances without a mask, which serve detectors only"),
            (self.without_box, "instances without a box, which detectors need"),
            (self.empty_segments, "segments without a pixel in their panoptic picture"),
        ):
            if count:
                warnings.append(f"{what}: {count}")
        return warnings

    def figures(self) -> dict[str, Any]:
        """Everything, as dicts, lists and numbers."""
        options, components = self.options, np.array(self.num_components)
        figures: dict[str, Any] = {
            "dataset": self.name,
            "ground_truth": options.truth,
            "records": self.num_records,
            "checked": self.num_checked,
            "intact": len(self.intact),
            "width": _range([width for _, width in self.sizes]),
            "height": _range([height for height, _ in self.sizes]),
            "turned_by_exif": self.turned,
            "share_ignored": self.share_ignored,
            "unlabelled_images": self.num_unlabelled,
            "labels_outside": {
                label: {"images": images, "pixels": pixels}
                for label, (images, pixels) in sorted(self.outside.items())
            },
            "classes": [
                {
                    "label": label,
                    "name": name,
                    "images": self.images_with[label],
                    "pixels": self.pixels[label],
                    "components": self.components[label],
                }
                for label, name in enumerate(options.class_names)
            ],
            "components_per_image": {
                "max_active": options.max_active,
                "min_area_ratio": options.min_area_ratio,
                "kernel_size": options.kernel_size,
            },
        }
        if len(components):
            figures["components_per_image"].update(
                mean=float(components.mean()),
                percentile_95=float(np.percentile(components, 95)),
                max=int(components.max()),
                share_over_max_active=self.share_over,
            )
        if options.thing_names:
            figures["instances"] = {
                "total": self.instances.sum(),
                "images": self.images_with_thing,
                "without_box": self.without_box,
                "categories": [
                    {
                        "category_id": index,
                        "name": name,
                        "instances": self.instances[index],
                        "images": self.images_with_instance[index],
                        "crowds": self.crowds[index],
                        "without_mask": self.without_mask[index],
                    }
                    for index, name in enumerate(options.thing_names)
                ],
            }
        if "pan_seg_file_name" in options.truth:
            figures["empty_segments"] = self.empty_segments
        figures["warnings"] = self.all_warnings()
        figures["num_faults"] = len(self.faults)
        figures["num_faults_by_kind"] = dict(
            Counter(fault.kind.name.lower() for fault in self.faults)
        )
        figures["faults"] = [
            {"kind": fault.kind.name.lower(), "message": fault.message} for fault in self.faults
        ]
        return figures


def check_records(
    records: Sequence[dict],
    report: DatasetReport,
    *,
    workers: int = 1,
    check: Callable[[dict, CheckOptions], RecordReport] = check_record,
) -> None:
    """Check records, and add up what they give.

    Each file is read once, in full. No image is kept: in memory are those that the workers are at.
    They are threads, since decoding and components let other threads run.

    Args:
        records: in Detectron2's standard format.
        report: what to add to.
        workers: number of threads.
        check: see :func:`check_record`.
    """
    executor = ThreadPoolExecutor(workers)
    with _one_opencv_thread():
        try:
            reports = executor.map(partial(check, options=report.options), records)
            # None: no bar where nobody looks, as in a file.
            for each in tqdm(reports, report.name, len(records), unit="image", disable=None):
                report.add(each)
        finally:
            # After Ctrl-C, what has begun is finished and the rest is not begun.
            executor.shutdown(cancel_futures=True)


def spread(count: int, total: int) -> list[int]:
    """At most ``count`` of the numbers in ``[0, total)``, evenly spread, the first among them."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    # Those of several workers would only fight for the cores.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _first(names: Sequence[str]) -> str:
    """The first few, and how many there are."""
    more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _range(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
