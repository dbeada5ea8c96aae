"""The augmentations of a config."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from .center_crop import CenterCrop

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
    """Build the augmentations of ``cfg.INPUT``: scale, crop, colours and flip, in this order.

    The crop is random, as in the public MaskFormer, or from the middle (CROP.POSITION "center"), as
    in the paper (Sec. A.1). If an image is smaller than the crop along one side, this side is not
    cropped; mappers pad it.

    Args:
        large_scale_jitter: draw the scale from MIN_SCALE to MAX_SCALE times IMAGE_SIZE, and crop to
            at most IMAGE_SIZE. MIN_SIZE_TRAIN and all keys of CROP have no effect then. Mappers pad
            smaller images, because Detectron2's own padding would give the padding a class.

    Raises:
        ValueError: a key has a value that it cannot have: COLOR_AUG_SSD for a FORMAT other than RGB
            and BGR, RANDOM_FLIP, CROP.TYPE, CROP.SIZE, CROP.POSITION, or
            CROP.SINGLE_CATEGORY_MAX_AREA (which a crop from the middle cannot have, either).
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
                "INPUT.COLOR_AUG_SSD changes the colours of RGB or BGR images, but INPUT.FORMAT is "
                f"{cfg.INPUT.FORMAT!r}; set COLOR_AUG_SSD to False"
            )
        # Imported only if it is used, because all of PointRend comes with it.
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
    check_crop_size(crop.TYPE, crop.SIZE)
    if not crop.SINGLE_CATEGORY_MAX_AREA > 0:
        raise ValueError(
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA must be a share of the crop above 0, or 1.0 for "
            f"no limit, not {crop.SINGLE_CATEGORY_MAX_AREA}"
        )
    if crop.POSITION == "center":
        if crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                "INPUT.CROP.POSITION 'center' always gives the same crop, so it cannot be drawn "
                "again if one class covers more than INPUT.CROP.SINGLE_CATEGORY_MAX_AREA "
                f"{crop.SINGLE_CATEGORY_MAX_AREA} of it; set that to 1.0, or the position to "
                "'random'"
            )
        return CenterCrop(crop.TYPE, crop.SIZE)
    if crop.SINGLE_CATEGORY_MAX_AREA >= 1:
        return T.RandomCrop(crop.TYPE, crop.SIZE)
    return T.RandomCrop_CategoryAreaConstraint(
        crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    )


def check_crop_size(crop_type: str, size: Sequence[float]) -> None:
    """Raise a ValueError if INPUT.CROP.TYPE is unknown or INPUT.CROP.SIZE does not fit it."""
    if crop_type not in _CROP_SIZES:
        raise ValueError(
            f"INPUT.CROP.TYPE must be one of {', '.join(map(repr, _CROP_SIZES))}, not {crop_type!r}"
        )
    in_pixels = crop_type.startswith("absolute")
    kinds, most = (int, sys.maxsize) if in_pixels else ((int, float), 1)
    fits = len(size) == 2 and all(isinstance(side, kinds) and 0 < side <= most for side in size)
    if not fits or (crop_type == "absolute_range" and size[0] > size[1]):
        raise ValueError(
            f"INPUT.CROP.SIZE of INPUT.CROP.TYPE {crop_type!r} must be {_CROP_SIZES[crop_type]}, "
            f"not {list(size)}"
        )
