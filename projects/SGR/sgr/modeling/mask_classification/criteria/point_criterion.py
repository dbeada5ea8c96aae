"""Mask2Former's set criterion: mask losses at points, most of them at uncertain places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from ...layers.checks import check_at_least_one
from .point_matcher import PointMatcher
from .points import Corners, sample_maps, sample_masks
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

    The random points are drawn once per image, for all its pairs and all layers. PointRend draws
    them for each pair. The distribution of the points of a pair is the same, so the expected losses
    and gradients are the same. Only the noise of different pairs is no longer independent. In
    exchange each mask is read once for all layers, and all predictions are read side by side.

    Predictions are read at their own resolution and targets from their bits, so no mask of full
    size is made. A pair costs ``(oversample_ratio + 1) * num_points`` bilinear reads of the
    prediction.
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

    def read_pairs(
        self,
        logits: Sequence[Tensor],
        masks: Sequence[Tensor],
        index: Sequence[Tensor],
        counts: Sequence[int],
    ) -> Iterable[tuple[Tensor, Tensor]]:
        uncertain = int(self.importance_sample_ratio * self.num_points)
        candidates = int(self.oversample_ratio * self.num_points)
        total = candidates + self.num_points - uncertain
        size, device = logits[0].shape[-2:], logits[0].device
        points = torch.rand(len(masks), total, 2, device=device)
        cells = [Corners.of(each, size) for each in points[:, :candidates]]
        pixels = [Corners.of(at, each.shape[-2:]) for at, each in zip(points, masks)]
        targets = torch.cat([sample_masks(each, at) for each, at in zip(masks, pixels)])
        grid = (2 * points - 1).flatten(0, 1)
        others = torch.arange(candidates, total, device=device)
        first = torch.cat(  # row of each pair's image in the grid
            [others.new_full((count, 1), total * image) for image, count in enumerate(counts)]
        )
        for layer, target in zip(logits, index):
            distance = [
                sample_maps(maps, at).abs_().T
                for maps, at in zip(layer.split(counts), cells)
                if len(maps)
            ]
            nearest = torch.cat(distance).topk(uncertain, largest=False, sorted=False).indices
            chosen = torch.cat((nearest, others.expand(len(layer), -1)), dim=1)
            at = grid.index_select(0, (chosen + first).flatten()).view(*chosen.shape, 1, 2)
            read = F.grid_sample(layer[:, None], at, align_corners=False)[:, 0, :, 0]
            yield read, targets.take(chosen + total * target[:, None])

    def mask_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_cross_entropy_loss(logits, targets)
