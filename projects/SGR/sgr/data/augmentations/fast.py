"""Replaces augmentations of Detectron2 by faster ones with the same results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from .center_crop import CenterCrop
from .color_jitter import ColorJitter
from .resized_crop import Resize, ResizedCrop

_MOST_DRAWS = 10


class ConstrainedCrop(T.RandomCrop_CategoryAreaConstraint):
    """Detectron2's ``RandomCrop_CategoryAreaConstraint`` with the same draws and results.

    It counts the labels in a crop with a table if they are bytes. This is ten times as fast as
    sorting them, and a crop may be drawn ten times.
    """

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        height, width = sem_seg.shape
        for _ in range(_MOST_DRAWS):
            rows, columns = self.crop_aug.get_crop_size((height, width))
            top = np.random.randint(height - rows + 1)
            left = np.random.randint(width - columns + 1)
            if self._is_mixed(sem_seg[top : top + rows, left : left + columns]):
                break
        return T.CropTransform(left, top, columns, rows)

    def _is_mixed(self, labels: np.ndarray) -> bool:
        """Whether there are at least two classes, and none exceeds the limit."""
        if labels.dtype == np.uint8:
            counts = np.bincount(labels.ravel(), minlength=256)
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[values != self.ignored_category]
        most = self.single_category_max_area * counts.sum()
        return len(counts) > 1 and bool(counts.max() < most)


# Only these exact classes are replaced: a subclass may do more, or look at the whole resized image,
# which is never made.
_RESIZES = (T.ResizeShortestEdge, T.ResizeScale)
# By name, so that PointRend need not be imported.
_COLORS = ("detectron2.projects.point_rend.color_augmentation", "ColorAugSSDTransform")
_CROPS = (T.RandomCrop, ConstrainedCrop, T.FixedSizeCrop, CenterCrop)


def accelerated(
    augmentations: Sequence[T.Augmentation | T.Transform],
) -> list[T.Augmentation | T.Transform]:
    """Replace augmentations by faster ones that draw the same random numbers with the same results.

    - A resizing and the crop directly after it become one :class:`ResizedCrop`, which only makes
      the part of the resized image that is needed.
    - Crops with a limit for the share of a class become a :class:`ConstrainedCrop`, which counts
      faster.
    - The colour jitter of SSD becomes a :class:`ColorJitter`, which uses tables.

    All others stay.
    """
    faster: list[T.Augmentation | T.Transform] = []
    for augmentation in augmentations:
        if type(augmentation) is T.RandomCrop_CategoryAreaConstraint:
            augmentation = ConstrainedCrop(
                augmentation.crop_type,
                augmentation.crop_size,
                augmentation.single_category_max_area,
                augmentation.ignored_category,
            )
        if type(augmentation) in _CROPS and faster and type(faster[-1]) in _RESIZES:
            augmentation = ResizedCrop(faster.pop(), augmentation)
        elif (type(augmentation).__module__, type(augmentation).__name__) == _COLORS:
            augmentation = ColorJitter(
                "RGB" if augmentation.is_rgb else "BGR",
                brightness=augmentation.brightness_delta,
                contrast=(augmentation.contrast_low, augmentation.contrast_high),
                saturation=(augmentation.saturation_low, augmentation.saturation_high),
                hue=augmentation.hue_delta,
            )
        faster.append(augmentation)
    return faster


def with_a_pixel(
    augmentations: Sequence[T.Augmentation | T.Transform],
) -> list[T.Augmentation | T.Transform]:
    """Let those that resize leave at least one pixel along each side, see :class:`Resize`."""
    return [Resize(one) if type(one) in _RESIZES else one for one in augmentations]
