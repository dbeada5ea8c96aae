"""Mask2Former's set criterion: mask losses at points, most of them at uncertain places."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from torch import Tensor
from torch.nn import functional as F

from ...layers.checks import check_at_least_one
from .point_matcher import PointMatcher
from .points import sample_masks
from .set_criterion import CRITERION_REGISTRY, SetCriterion


def sigmoid_cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross entropy of (N, P) logits and targets: mean over P, sum over N."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()


@CRITERION_REGISTRY.register()
class PointSetCriterion(SetCriterion):
    """:class:`SetCriterion` with cross entropy and dice at points, as in PointRend and Mask2Former.

    Every matched pair has ``num_points`` points. A share of ``importance_sample_ratio`` are those
    with the smallest absolute logits among ``oversample_ratio * num_points`` random points. The
    rest are random.

    Predictions are read at their own resolution and targets from their bits, so no mask of full
    size is made. A pair costs ``(oversample_ratio + 1) * num_points`` bilinear reads of the
    prediction and ``num_points`` reads of the target.
    """

    @configurable
    def __init__(
        self,
        *,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        **options: Any,
    ):
        """
        Args:
            num_points: P, points of a pair, at least 1.
            oversample_ratio: candidates for the uncertain points, relative to P, at least 1.
            importance_sample_ratio: share of the uncertain ones among the P points, in [0, 1].
            **options: see :class:`SetCriterion`.

        Raises:
            ValueError: a number is out of its range.
        """
        super().__init__(**options)
        check_at_least_one("num_points (MODEL.MASK_FORMER.TRAIN_NUM_POINTS)", num_points)
        check_at_least_one(
            "oversample_ratio (MODEL.MASK_FORMER.OVERSAMPLE_RATIO)", oversample_ratio
        )
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "importance_sample_ratio (MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO) must be "
                "between 0 and 1, got "
                f"{importance_sample_ratio}"
            )
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg),
            "matcher": PointMatcher(cfg),
            "num_points": options.TRAIN_NUM_POINTS,
            "oversample_ratio": options.OVERSAMPLE_RATIO,
            "importance_sample_ratio": options.IMPORTANCE_SAMPLE_RATIO,
        }

    def read_pairs(self, logits: Tensor, masks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits[:, None]
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                logits,
                _uncertainty,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            targets = sample_masks(masks, points, index)
        return point_sample(logits, points, align_corners=False)[:, 0], targets

    def mask_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_cross_entropy_loss(logits, targets)


def _uncertainty(logits: Tensor) -> Tensor:
    """Give 0 for a probability of 0.5 and less for a surer prediction."""
    return -logits.abs()
