"""Mask2Former as a Detectron2 meta-architecture."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .point_criterion import PointSetCriterion
from .point_matcher import PointMatcher
from .segmentor import MaskFormerSegmentor

__all__ = ["Mask2FormerSegmentor"]


@META_ARCH_REGISTRY.register()
class Mask2FormerSegmentor(MaskFormerSegmentor):
    """:class:`MaskFormerSegmentor` that trains on points of the masks (Mask2Former).

    Its head is what makes the rest of Mask2Former: see :class:`MaskedAttentionPredictor` and
    :class:`DeformablePixelDecoder`.
    """

    panoptic_within_masks = True

    @classmethod
    def build_criterion(cls, cfg: CfgNode, num_classes: int) -> PointSetCriterion:
        """The losses, and the matching by the same weights, of ``cfg.MODEL.MASK_FORMER``."""
        options = cfg.MODEL.MASK_FORMER
        return PointSetCriterion(
            num_classes=num_classes,
            matcher=PointMatcher(
                num_points=options.TRAIN_NUM_POINTS,
                class_weight=options.CLASS_WEIGHT,
                mask_weight=options.MASK_WEIGHT,
                dice_weight=options.DICE_WEIGHT,
            ),
            weight_dict={
                "loss_ce": options.CLASS_WEIGHT,
                "loss_mask": options.MASK_WEIGHT,
                "loss_dice": options.DICE_WEIGHT,
            },
            no_object_weight=options.NO_OBJECT_WEIGHT,
            num_points=options.TRAIN_NUM_POINTS,
            oversample_ratio=options.OVERSAMPLE_RATIO,
            importance_sample_ratio=options.IMPORTANCE_SAMPLE_RATIO,
        )
