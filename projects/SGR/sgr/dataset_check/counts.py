"""What is counted, in one record or in a dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np

from .options import CheckOptions

__all__ = ["Counts"]


def _number() -> int:
    return field(default=0, init=False)


def _numbers() -> np.ndarray:
    return field(init=False)


@dataclass
class Counts:
    """Sums over records; N classes, M categories of things.

    Attributes:
        options: what the records are checked for.
        pixels: (N,) int64, of each class.
        images_with: (N,) int64, images that have a pixel of the class.
        components: (N,) int64, connected components, of the L largest of each image.
        instances, crowds: (M,) int64, of each category.
        images_with_instance: (M,) int64, images that have an instance of the category.
        without_mask: (M,) int64, instances that have a box at most; among ``instances``.
        num_pixels: of all that follow: classes, ignored and wrong labels.
        num_ignored: pixels of no class, wrong labels aside.
        outside_pixels, outside_images: by label, of those that are neither a class nor ignored.
        num_unlabelled: images without a pixel of a class.
        images_with_thing: images that have an instance.
        without_box: instances of ``annotations`` that have no box.
        boxes_beyond: boxes that reach beyond their image by more than a pixel.
        empty_masks: instances whose mask has no pixel in the image.
        empty_segments: panoptic segments without a pixel.
        lossy: maps of labels or segments in JPEG files.
    """

    options: CheckOptions
    pixels: np.ndarray = _numbers()
    images_with: np.ndarray = _numbers()
    components: np.ndarray = _numbers()
    instances: np.ndarray = _numbers()
    crowds: np.ndarray = _numbers()
    images_with_instance: np.ndarray = _numbers()
    without_mask: np.ndarray = _numbers()
    outside_pixels: Counter[int] = field(default_factory=Counter, init=False)
    outside_images: Counter[int] = field(default_factory=Counter, init=False)
    num_pixels: int = _number()
    num_ignored: int = _number()
    num_unlabelled: int = _number()
    images_with_thing: int = _number()
    without_box: int = _number()
    boxes_beyond: int = _number()
    empty_masks: int = _number()
    empty_segments: int = _number()
    lossy: int = _number()

    def __post_init__(self) -> None:
        num_classes, num_things = len(self.options.class_names), len(self.options.thing_names)
        self.pixels, self.images_with, self.components = np.zeros((3, num_classes), np.int64)
        self.instances, self.crowds, self.images_with_instance, self.without_mask = np.zeros(
            (4, num_things), np.int64
        )

    def add_counts(self, other: Counts) -> None:
        """Add what another has counted."""
        for each in fields(Counts)[1:]:  # but for the options
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
