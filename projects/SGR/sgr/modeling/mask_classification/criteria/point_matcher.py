"""Mask2Former's matching, on points instead of whole masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from ...layers.checks import check_at_least_one
from .matcher import HungarianMatcher
from .points import Corners, sample_maps, sample_masks


def pairwise_cross_entropy_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean binary cross entropy of every prediction with every target.

    Args:
        logits: (..., Q, P) predictions at P points.
        targets: (..., T, P) in [0, 1].

    Returns:
        (..., Q, T).
    """
    # -t log(p) - (1 - t) log(1 - p) = softplus(x) - x t, so one product is enough for all pairs.
    total = F.softplus(logits).sum(-1, keepdim=True) - (targets @ logits.mT).mT
    return total / logits.shape[-1]


class PointMatcher(HungarianMatcher):
    """:class:`HungarianMatcher` that compares masks at ``num_points`` random points of the image.

    The cost of a pair is ``-class_weight * p(class) + mask_weight * cross_entropy + dice_weight *
    dice`` (Mask2Former, Sec. 3.3). Every call draws one new set of points per image, for all
    targets and the predictions of all layers. It takes the memory of a few times Q * P
    floats, for images of any size.

    Args:
        num_points: P, at least 1.
        class_weight, mask_weight, dice_weight: weights of the terms; at least one is not zero.

    Raises:
        ValueError: there is no point, or all weights are zero.
    """

    @configurable
    def __init__(
        self,
        *,
        num_points: int = 12544,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
    ):
        super().__init__(
            class_weight=class_weight, mask_weight=mask_weight, dice_weight=dice_weight
        )
        check_at_least_one("num_points (MODEL.MASK_FORMER.TRAIN_NUM_POINTS)", num_points)
        self.num_points = num_points

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "num_points": cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS}

    def read_all(self, logits: Sequence[Tensor], masks: Tensor) -> tuple[Iterable[Tensor], Tensor]:
        points = torch.rand(self.num_points, 2, device=masks.device)
        cells = Corners.of(points, logits[0].shape[-2:])
        targets = sample_masks(masks, Corners.of(points, masks.shape[-2:]))
        return (sample_maps(layer, cells).T for layer in logits), targets

    def mask_cost(self, logits: Tensor, masks: Tensor) -> Tensor:
        return pairwise_cross_entropy_cost(logits, masks)
