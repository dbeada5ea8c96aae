"""The augmentations of the config."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T

__all__ = ["build_augmentations"]


def build_augmentations(
    cfg: CfgNode, *, large_scale_jitter: bool = False
) -> list[T.Augmentation | T.Transform]:
    """Scale, crop, colours and flip, in this order, as ``cfg.INPUT`` has them.

    Args:
        cfg: the config.
        large_scale_jitter: draw the scale from MIN_SCALE to MAX_SCALE times IMAGE_SIZE, and crop to
            at most IMAGE_SIZE; the keys MIN_SIZE_TRAIN and CROP are then of no effect. Smaller
            images are left as they are; mappers pad them, because Detectron2's own padding would
            give them a class.

    Raises:
        ValueError: INPUT.RANDOM_FLIP is none of its three values.
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
    if crop.SINGLE_CATEGORY_MAX_AREA >= 1:
        return T.RandomCrop(crop.TYPE, crop.SIZE)
    return T.RandomCrop_CategoryAreaConstraint(
        crop.TYPE,
        crop.SIZE,
        crop.SINGLE_CATEGORY_MAX_AREA,
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
