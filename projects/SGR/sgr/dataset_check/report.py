"""What the checker found: in one record, or in the records of a dataset together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..data.faults import Fault, FaultKind, list_values
from .options import CheckOptions

# Kept components of a class per image that shows it. An image that supervises a class keeps at
# least one, so below this, fewer than half of the images with the class do: in the others all of it
# is smaller than MIN_AREA_RATIO times the largest component, or among the smallest beyond L.
_FEW_COMPONENTS = 0.5


@dataclass
class Report:
    """Figures and faults of one record; adding the reports of records gives that of a dataset.

    N is the number of classes, M that of categories of things, L ``options.max_active``.

    Attributes:
        options: what the records are checked for.
        name: the dataset, or the image of the record.
        num_records: all records of the dataset; ``num_checked`` of them were checked, of which
            ``num_intact`` have no fault.
        pixels: (N,) int64, pixels of each class.
        images_with: (N,) int64, images with a pixel of the class.
        components: (N,) int64, connected components among the L largest of each image.
        instances, crowds: (M,) int64, of each category.
        images_with_instance: (M,) int64, images with an instance of the category.
        without_mask: (M,) int64, instances without a mask; they are among ``instances``.
        outside_pixels, outside_images: by label, for labels that are neither a class nor ignored.
        num_pixels: pixels of classes, ignored ones and those with a wrong label.
        num_ignored: pixels of no class, without those with a wrong label.
        num_unlabelled: images without a pixel of a class.
        images_with_thing: images with an instance.
        without_box: instances of ``annotations`` without a box.
        boxes_beyond: boxes that reach beyond their image by more than a pixel.
        empty_masks: instances whose mask has no pixel in the image.
        empty_segments: panoptic segments without a pixel.
        lossy: maps of labels or segments in JPEG files.
        faults: in the order of the records.
        warnings: sentences about the dataset as a whole; :meth:`all_warnings` has more.
        turned: images that their EXIF data turn, if no size proves that the ground truth is turned
            too.
        sizes: (height, width) of each readable image.
        num_components: components of each image with a map of classes, before the L largest are
            kept.
        can_be_drawn: for each checked record, whether its image and ground truth can be drawn.
    """

    options: CheckOptions
    name: str
    num_records: int = 1
    num_checked: int = 0
    num_intact: int = 0
    pixels: np.ndarray = field(init=False)
    images_with: np.ndarray = field(init=False)
    components: np.ndarray = field(init=False)
    instances: np.ndarray = field(init=False)
    crowds: np.ndarray = field(init=False)
    images_with_instance: np.ndarray = field(init=False)
    without_mask: np.ndarray = field(init=False)
    outside_pixels: Counter[int] = field(default_factory=Counter)
    outside_images: Counter[int] = field(default_factory=Counter)
    num_pixels: int = 0
    num_ignored: int = 0
    num_unlabelled: int = 0
    images_with_thing: int = 0
    without_box: int = 0
    boxes_beyond: int = 0
    empty_masks: int = 0
    empty_segments: int = 0
    lossy: int = 0
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    num_components: list[int] = field(default_factory=list)
    can_be_drawn: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        num_classes, num_things = len(self.options.class_names), len(self.options.thing_names)
        self.pixels, self.images_with, self.components = np.zeros((3, num_classes), np.int64)
        self.instances, self.crowds, self.images_with_instance, self.without_mask = np.zeros(
            (4, num_things), np.int64
        )

    def add(self, other: Report) -> None:
        """Add the report of one record."""
        for attribute in fields(self)[3:]:  # all but options, name and num_records
            total = getattr(self, attribute.name)
            total += getattr(other, attribute.name)  # in place: new lists would be slow
            setattr(self, attribute.name, total)

    def add_fault(self, kind: FaultKind, message: str) -> None:
        self.faults.append(Fault(message, kind))

    def add_fault_if_empty(self) -> None:
        """Add a fault if nothing can be learned from the records. Call it after the last one."""
        # In annotations, the background has pixels even without an instance.
        has_labels = self.options.truth != ("annotations",)
        if not self.num_intact or self.instances.any() or (has_labels and self.pixels.any()):
            return
        lacking = "labelled pixel" if has_labels else "instance"
        message = f"none of the {self.num_checked} images looked at has a {lacking}"
        self.add_fault(FaultKind.EMPTY, message)

    @property
    def share_ignored(self) -> float:
        """Share of ignored pixels; nan if there are no pixels."""
        return self.num_ignored / self.num_pixels if self.num_pixels else float("nan")

    @property
    def share_over(self) -> float:
        """Share of the images with more than L components; nan if there are no images."""
        if not self.num_components:
            return float("nan")
        return float(np.mean(np.array(self.num_components) > self.options.max_active))

    def absent_classes(self) -> list[str]:
        """Names of classes without a pixel, and (beside label maps) of things without instances."""
        options = self.options
        names = [options.class_names[index] for index in np.flatnonzero(self.images_with == 0)]
        if options.truth != ("annotations",) and "annotations" in options.truth:
            lacking = np.flatnonzero(self.instances + self.crowds == 0)
            names += [f"{options.thing_names[index]} (as instance)" for index in lacking]
        return names

    def all_warnings(self) -> list[str]:
        """``warnings``, and sentences about figures that may show a mistake."""
        return [*self.warnings, *self._class_warnings(), *self._count_warnings()]

    def _class_warnings(self) -> Iterator[str]:
        names, absent = self.options.class_names, self.absent_classes()
        if absent and self.num_checked:
            where = "the images looked at" if self.num_checked < self.num_records else "any image"
            yield f"classes that do not occur in {where}: {list_values(absent, count=True)}"
        small = np.flatnonzero((self.images_with > 0) & (self.components == 0))
        if len(small):
            shown = list_values([names[index] for index in small], count=True)
            yield f"classes without a component that is kept, in whole images: {shown}"
        per_image = self.components / np.maximum(self.images_with, 1)
        few = np.flatnonzero((self.components > 0) & (per_image < _FEW_COMPONENTS))
        if len(few):
            few = few[np.argsort(per_image[few], kind="stable")]
            shown = list_values(
                [f"{names[index]} ({per_image[index]:.2f})" for index in few], count=True
            )
            yield (
                f"classes with fewer than {_FEW_COMPONENTS} components per image, so that most "
                "images with the class do not supervise its concepts (lower "
                f"INPUT.COMPONENTS.MIN_AREA_RATIO, {self.options.min_area_ratio}, or train on "
                f"smaller crops): {shown}"
            )
        outside = set(self.outside_pixels)
        starts_late = outside and min(outside) > 0 and not self.images_with[0]
        if outside == {len(names)} or starts_late:
            yield (
                f"labels beyond the classes begin with {min(outside)}: do the labels count from 1? "
                "Then each class has the name of the one before"
            )
        present = np.flatnonzero(self.pixels)
        has_label_maps = "sem_seg_file_name" in self.options.truth
        if has_label_maps and self.num_ignored and len(present) == 1 and not outside:
            yield (
                f"all labelled pixels are of one class, {present[0]} ({names[present[0]]}), and "
                "the rest is ignored: are these masks of 0 and 255? Labels are 0, 1, 2..."
            )
        if self.turned:
            yield (
                "images turned when read, by the orientation in their EXIF data, while no size "
                "tells whether their ground truth is turned alike: "
                f"{list_values(self.turned, count=True)}"
            )

    def _count_warnings(self) -> Iterator[str]:
        for count, what in (
            (self.num_unlabelled, "images without a labelled pixel"),
            (self.without_mask.sum(), "instances without a mask, which serve detectors only"),
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
                yield f"{what}: {count}"

    def figures(self) -> dict[str, Any]:
        """All figures, warnings and faults as dicts, lists and numbers."""
        options = self.options
        height, width = zip(*self.sizes) if self.sizes else ((), ())
        figures: dict[str, Any] = {
            "dataset": self.name,
            "ground_truth": options.truth,
            "records": self.num_records,
            "checked": self.num_checked,
            "intact": self.num_intact,
            "width": _range(width),
            "height": _range(height),
            "turned_by_exif": self.turned,
            "share_ignored": self.share_ignored,
            "unlabelled_images": self.num_unlabelled,
            "labels_outside": {
                label: {"images": self.outside_images[label], "pixels": pixels}
                for label, pixels in sorted(self.outside_pixels.items())
            },
            "classes": _rows(
                label=range(len(options.class_names)),
                name=options.class_names,
                images=self.images_with,
                pixels=self.pixels,
                components=self.components,
            ),
            "components_per_image": self._component_figures(),
        }
        if options.thing_names:
            figures["instances"] = self._instance_figures()
        if "pan_seg_file_name" in options.truth:
            figures["empty_segments"] = self.empty_segments
        faults = [
            {"kind": fault.kind.name.lower(), "message": fault.message} for fault in self.faults
        ]
        return {
            **figures,
            "warnings": self.all_warnings(),
            "num_faults": len(faults),
            "num_faults_by_kind": dict(Counter(fault["kind"] for fault in faults)),
            "faults": faults,
        }

    def _component_figures(self) -> dict[str, Any]:
        options, counts = self.options, np.array(self.num_components)
        figures = {
            "max_active": options.max_active,
            "min_area_ratio": options.min_area_ratio,
            "kernel_size": options.kernel_size,
        }
        if len(counts):
            figures.update(
                mean=float(counts.mean()),
                percentile_95=float(np.percentile(counts, 95)),
                max=int(counts.max()),
                share_over_max_active=self.share_over,
            )
        return figures

    def _instance_figures(self) -> dict[str, Any]:
        names = self.options.thing_names
        return {
            "total": self.instances.sum(),
            "images": self.images_with_thing,
            "without_box": self.without_box,
            "boxes_beyond_image": self.boxes_beyond,
            "empty_masks": self.empty_masks,
            "categories": _rows(
                category_id=range(len(names)),
                name=names,
                instances=self.instances,
                images=self.images_with_instance,
                crowds=self.crowds,
                without_mask=self.without_mask,
            ),
        }


def spread(count: int, total: int) -> list[int]:
    """At most ``count`` of the numbers in ``[0, total)``, evenly spread, the first among them."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


def _rows(**columns: Iterable) -> list[dict[str, Any]]:
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _range(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
