"""A dataset's figures: the sums of its records'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np

from ..data.faults import Fault
from ..data.threads import work_in_threads
from .counts import Counts
from .faults import FaultKind
from .options import CheckOptions
from .record import RecordReport, check_record

__all__ = ["NAMES_SHOWN", "DatasetReport", "check_records", "spread"]

# Names that a warning gives.
NAMES_SHOWN = 10


class DatasetReport(Counts):
    """What the reports of single records add up to, see :class:`Counts`.

    Attributes:
        name: of the dataset.
        num_records: of the whole dataset; ``num_checked`` is how many reports were added, of which
            ``num_intact`` have no fault.
        faults: of all records, in their order, and whatever else is found.
        warnings: sentences about what may be wanted, or not; see :meth:`all_warnings`.
        turned: images that their EXIF data turn, see :class:`RecordReport`.
        sizes: (height, width) of each image that can be read.
        num_components: of each image that has a map of classes.
        drawable: the records that can be drawn, by their places in the order of adding.
    """

    def __init__(self, name: str, options: CheckOptions, num_records: int) -> None:
        super().__init__(options)
        self.name = name
        self.num_records = num_records
        self.num_checked = self.num_intact = 0
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self.turned: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.num_components: list[int] = []
        self.drawable: list[int] = []

    def add(self, report: RecordReport) -> None:
        """Add the report of one record."""
        self.add_counts(report)
        if report.can_be_drawn:
            self.drawable.append(self.num_checked)
        self.num_checked += 1
        self.num_intact += not report.faults
        self.faults += report.faults
        if report.is_turned:
            self.turned.append(report.file_name)
        if report.size is not None:
            self.sizes.append(report.size)
        if report.num_components is not None:
            self.num_components.append(report.num_components)

    def close(self) -> None:
        """To be called when all records have been added: adds what they lack together."""
        of_pixels = self.options.truth != ("annotations",)  # else the background has some
        if self.num_intact and not self.instances.any() and not (of_pixels and self.pixels.any()):
            lacking = "labelled pixel" if of_pixels else "instance"
            message = f"none of the {self.num_checked} images looked at has a {lacking}"
            self.faults.append(Fault(message, FaultKind.EMPTY))

    @property
    def share_ignored(self) -> float:
        """Share of the pixels that count for nothing, of all that are looked at; nan of none."""
        return self.num_ignored / self.num_pixels if self.num_pixels else float("nan")

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
                f"classes without a component that is kept, in whole images: {_first(names)}"
            )
        outside = set(self.outside_pixels)
        if outside == {len(self.options.class_names)} or (
            outside and min(outside) > 0 and not self.images_with[0]
        ):
            warnings.append(
                f"labels beyond the classes begin with {min(outside)}: do the labels count from 1? "
                "Then each class has the name of the one before"
            )
        if "sem_seg_file_name" in self.options.truth and self.num_ignored:
            there = np.flatnonzero(self.pixels)
            if len(there) == 1 and not outside:
                warnings.append(
                    f"all labelled pixels are of one class, {there[0]} "
                    f"({self.options.class_names[there[0]]}), and the rest is ignored: are these "
                    "masks of 0 and 255? Labels are 0, 1, 2..."
                )
        if self.turned:
            warnings.append(
                "images turned when read, by the orientation in their EXIF data, where no size "
                f"tells whether their ground truth is turned alike: {_first(self.turned)}"
            )
        for count, what in (
            (self.num_unlabelled, "images without a labelled pixel"),
            (int(self.without_mask.sum()), "instances without a mask, which serve detectors only"),
            (self.without_box, "instances without a box, which detectors need"),
            (
                self.boxes_beyond,
                "boxes that reach beyond their image by more than a pixel (is their bbox_mode "
                "right? x, y, x, y taken for x, y, width, height looks like this)",
            ),
            (self.empty_masks, "instances whose mask has no pixel in the image"),
            (self.empty_segments, "segments without a pixel in their panoptic picture"),
            (
                self.lossy,
                "maps of labels or segments in JPEG files, which change labels at edges (make them "
                "anew as PNG)",
            ),
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
            "intact": self.num_intact,
            "width": _range([width for _, width in self.sizes]),
            "height": _range([height for height, _ in self.sizes]),
            "turned_by_exif": self.turned,
            "share_ignored": self.share_ignored,
            "unlabelled_images": self.num_unlabelled,
            "labels_outside": {
                label: {"images": self.outside_images[label], "pixels": pixels}
                for label, pixels in sorted(self.outside_pixels.items())
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
                "boxes_beyond_image": self.boxes_beyond,
                "empty_masks": self.empty_masks,
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
) -> None:
    """Check records, and add up what they give.

    Each file is read once, in full. No image is kept: in memory are those that the workers are at.
    They are threads, since decoding and components let other threads run.

    Args:
        records: in Detectron2's standard format.
        report: what to add to.
        workers: number of threads.
    """
    with _one_opencv_thread():
        work_in_threads(
            partial(check_record, options=report.options),
            records,
            report.add,
            workers=workers,
            name=report.name,
        )
    report.close()


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
    more = f", ... ({len(names)})" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _range(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
