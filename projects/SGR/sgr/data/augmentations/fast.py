"""Faster augmentations of equal results in the place of Detectron2's."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import transforms as T

from .center_crop import CenterCrop
from .color_jitter import ColorJitter
from .constrained_crop import ConstrainedCrop
from .resized_crop import ResizedCrop

__all__ = ["accelerated"]

# Exactly these: a class derived from them may do something else besides, or look at the resized
# image, which is never there as a whole.
_RESIZES = (T.ResizeShortestEdge, T.ResizeScale)
# By its name, since it comes with all of PointRend.
_COLORS = ("detectron2.projects.point_rend.color_augmentation", "ColorAugSSDTransform")
_CROPS = (T.RandomCrop, ConstrainedCrop, T.FixedSizeCrop, CenterCrop)


def accelerated(
    augmentations: Sequence[T.Augmentation | T.Transform],
) -> list[T.Augmentation | T.Transform]:
    """The same augmentations, which draw the same random numbers and have the same results, faster.

    What resizes and what crops right behind it become one (:class:`ResizedCrop`), and so the rest
    of the resized image is never made; crops with a limit to the share of a class count faster
    (:class:`ConstrainedCrop`); the colour jitter of SSD goes by tables (:class:`ColorJitter`). All
    others stay as they are.
    """
    faster: list[T.Augmentation | T.Transform] = []
    for each in augmentations:
        if type(each) is T.RandomCrop_CategoryAreaConstraint:
            each = ConstrainedCrop(
                each.crop_type,
                each.crop_size,
                each.single_category_max_area,
                each.ignored_category,
            )
        if type(each) in _CROPS and faster and type(faster[-1]) in _RESIZES:
            each = ResizedCrop(faster.pop(), each)
        elif (type(each).__module__, type(each).__name__) == _COLORS:
            each = ColorJitter(
                "RGB" if each.is_rgb else "BGR",
                brightness=each.brightness_delta,
                contrast=(each.contrast_low, each.contrast_high),
                saturation=(each.saturation_low, each.saturation_high),
                hue=each.hue_delta,
            )
        faster.append(each)
    return faster
