"""The augmentations of the config."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from .center_crop import CenterCrop

__all__ = ["build_augmentations"]

# By INPUT.CROP.TYPE.
_CROP_SIZES = {
    "relative_range": "the smallest shares of the height and of the width, above 0 and at most 1",
    "relative": "shares of the height and of the width, above 0 and at most 1",
    "absolute": "height and width in pixels, two positive integers",
    "absolute_range": "the smallest and the largest side in pixels, two positive integers",
}


def build_augmentations(
    cfg: CfgNode, *, large_scale_jitter: bool = False
) -> list[T.Augmentation | T.Transform]:
    """Scale, crop, colours and flip, in this order, as ``cfg.INPUT`` has them.

    The crop is taken at random, as by the public MaskFormer, or from the middle (CROP.POSITION
    "center"), as the paper says (Sec. A.1). Images smaller than the crop stay as they are along
    that side; mappers pad them.

    Args:
        cfg: the config.
        large_scale_jitter: draw the scale from MIN_SCALE to MAX_SCALE times IMAGE_SIZE, and crop to
            at most IMAGE_SIZE; the keys MIN_SIZE_TRAIN and CROP, with its POSITION, are then of no
            effect. Smaller images are left as they are; mappers pad them, because Detectron2's own
            padding would give them a class.

    Raises:
        ValueError: colours are to be changed of images that are neither RGB nor BGR;
            INPUT.RANDOM_FLIP is none of its three values, INPUT.CROP.TYPE none of its four,
            or INPUT.CROP.POSITION none of its two; INPUT.CROP.SIZE is no size of this type, or
            INPUT.CROP.SINGLE_CATEGORY_MAX_AREA not positive; or a crop from the middle is to be
            drawn again because of its classes.
    """
    if cfg.INPUT.RANDOM_FLIP not in ("none", "horizontal", "vertical"):
        raise ValueError(
            "INPUT.RANDOM_FLIP must be 'none', 'horizontal' or 'vertical', not "
            f"{cfg.INPUT.RANDOM_FLIP!r}"
        )
    if large_scale_jitter:
        side = cfg.INPUT.IMAGE_SIZE
        augmentations: list[T.Augmentation | T.Transform] = [
            T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side),
            T.FixedSizeCrop((side, side), pad=False),
        ]
    else:
        augmentations = [
            T.ResizeShortestEdge(
                cfg.INPUT.MIN_SIZE_TRAIN,
                cfg.INPUT.MAX_SIZE_TRAIN,
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            )
        ]
        if cfg.INPUT.CROP.ENABLED:
            augmentations.append(_crop(cfg))
    if cfg.INPUT.COLOR_AUG_SSD:
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(
                "INPUT.COLOR_AUG_SSD changes the colours of RGB or BGR images, not of "
                f"INPUT.FORMAT {cfg.INPUT.FORMAT!r}; set it to False"
            )
        # Imported only where wanted: it comes with all of PointRend.
        from detectron2.projects.point_rend import ColorAugSSDTransform

        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations


def _crop(cfg: CfgNode) -> T.Augmentation:
    crop = cfg.INPUT.CROP
    if crop.POSITION not in ("random", "center"):
        raise ValueError(f"INPUT.CROP.POSITION must be 'random' or 'center', not {crop.POSITION!r}")
    _check_crop_size(crop.TYPE, crop.SIZE)
    if not crop.SINGLE_CATEGORY_MAX_AREA > 0:
        raise ValueError(
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA must be a share of the crop above 0, or 1.0 for "
            f"no limit, not {crop.SINGLE_CATEGORY_MAX_AREA}"
        )
    if crop.POSITION == "center":
        if crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                "with INPUT.CROP.POSITION 'center' a crop cannot be drawn again where one class "
                "covers more of it than INPUT.CROP.SINGLE_CATEGORY_MAX_AREA "
                f"{crop.SINGLE_CATEGORY_MAX_AREA}; set that to 1.0, or the position to 'random'"
            )
        return CenterCrop(crop.TYPE, crop.SIZE)
    if crop.SINGLE_CATEGORY_MAX_AREA >= 1:
        return T.RandomCrop(crop.TYPE, crop.SIZE)
    return T.RandomCrop_CategoryAreaConstraint(
        crop.TYPE,
        crop.SIZE,
        crop.SINGLE_CATEGORY_MAX_AREA,
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )


def _check_crop_size(crop_type: str, size: Sequence[float]) -> None:
    if crop_type not in _CROP_SIZES:
        raise ValueError(
            f"INPUT.CROP.TYPE must be one of {', '.join(map(repr, _CROP_SIZES))}, not {crop_type!r}"
        )
    in_pixels = crop_type.startswith("absolute")
    kinds, most = (int, sys.maxsize) if in_pixels else ((int, float), 1)
    fits = len(size) == 2 and all(isinstance(each, kinds) and 0 < each <= most for each in size)
    if not fits or (crop_type == "absolute_range" and size[0] > size[1]):
        raise ValueError(
            f"INPUT.CROP.SIZE of INPUT.CROP.TYPE {crop_type!r} must be {_CROP_SIZES[crop_type]}, "
            f"not {list(size)}"
        )
