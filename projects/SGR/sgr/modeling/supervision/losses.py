"""Parts of the concept losses (Eq. 6): unions of regions, and their similarity.

Literal versions are in tools/benchmarks/matcher.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# From 1 - SATURATION on, log(1 - sum) of a sum of regions goes on as a straight line, so that it
# stays finite.
SATURATION = 0.05


def noisy_or_union(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unite the regions of each group by noisy or: ``1 - prod(1 - P_i)``, in logarithms.

    Args:
        logits: (B, K, N).
        groups: (B, K, C), 1 where a region belongs to a group.

    Returns:
        union, log(union) and log(1 - union), each (B, C, N).
    """
    log_outside = groups.mT @ F.logsigmoid(-logits)
    # Closer to 0, the union would underflow. The bound keeps log(union) and its gradient finite.
    log_outside = log_outside.clamp_max(-(torch.finfo(logits.dtype).tiny ** 0.8))
    union = -torch.expm1(log_outside)
    return union, union.log(), log_outside


def sum_union(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unite the regions of each group as in Eq. 6: by their sum, which may pass 1.

    Below ``1 - SATURATION``, both logarithms are exact. Above, log(1 - sum) goes on along its
    tangent at this value, and log(sum) stops at 0. The tangent alone would not push down a region
    whose P is near 1. So log(1 - union) of the noisy or is added where it is below
    log(SATURATION), which it can be only above.

    Arguments and results are those of :func:`noisy_or_union`.
    """
    union = groups.mT @ logits.sigmoid()
    knee = 1 - SATURATION
    below = union.clamp_max(knee)
    certain = (groups.mT @ F.logsigmoid(-logits) - math.log(SATURATION)).clamp_max(0)
    log_outside = torch.log1p(-below) - (union - below) / SATURATION + certain
    log_inside = union.clamp(torch.finfo(logits.dtype).tiny, 1).log()
    return union, log_inside, log_outside


def pairwise_cosine(regions: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    """Compute the mean cosine similarity of the pairs in each group (the last term of Eq. 6).

    It needs no K x K matrix: the sum over the pairs is ``|sum of unit vectors|^2 - size``.

    Args:
        regions: (B, K, N) probabilities, or any other vectors.
        weights: (B, N) weights of the cells in the inner products.
        groups: (B, K, C), 1 where a region belongs to a group.

    Returns:
        (B, C) in [0, 1]. It is 0 for groups of fewer than two regions.
    """
    unit = F.normalize(regions * weights.sqrt()[:, None], dim=2)
    size = groups.sum(dim=1)
    pairs = (groups.mT @ unit).square().sum(dim=2) - groups.mT.matmul(
        unit.square().sum(dim=2, keepdim=True)
    ).squeeze(2)
    return pairs / (size * (size - 1)).clamp_min(1)
