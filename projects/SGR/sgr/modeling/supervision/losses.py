"""What is special to concept losses (Eq. 6): unions of regions, and their similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["noisy_or_union", "pairwise_cosine", "sum_union"]

# Where a sum of regions comes this close to 1 or passes it, log(1 - sum) goes on as a straight
# line: it stays finite and keeps pushing down what covers another component.
SATURATION = 0.05


def noisy_or_union(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Union of the regions in each group, ``1 - prod(1 - P_i)``, computed in logarithms.

    Args:
        logits: (B, K, N).
        groups: (B, K, C), 1 where a region belongs to a group.

    Returns:
        union, log(union) and log(1 - union), (B, C, N).
    """
    log_outside = groups.mT @ F.logsigmoid(-logits)
    # Below, p underflows next to 1; the bound keeps log(p) and its gradient finite.
    log_outside = log_outside.clamp_max(-(torch.finfo(logits.dtype).tiny ** 0.8))
    union = -torch.expm1(log_outside)
    return union, union.log(), log_outside


def sum_union(logits: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Union of the regions in each group as Eq. 6 writes it, their sum, which may pass 1.

    Where the sum is below ``1 - SATURATION``, both logarithms are exact. Above, log(1 - sum) is
    its tangent there; and log(sum) stops at 0.

    Args and returns as :func:`noisy_or_union`.
    """
    union = groups.mT @ logits.sigmoid()
    knee = 1 - SATURATION
    below = union.clamp_max(knee)
    log_outside = torch.log1p(-below) - (union - below) / SATURATION
    log_inside = union.clamp(torch.finfo(logits.dtype).tiny, 1).log()
    return union, log_inside, log_outside


def pairwise_cosine(regions: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    """Mean cosine similarity over the pairs of different regions in each group (last of Eq. 6).

    No K x K matrix: the pairs' sum is ``|sum of unit vectors|^2 - size``.

    Args:
        regions: (B, K, N) probabilities.
        weights: (B, N) weights of the cells in the inner products.
        groups: (B, K, C), 1 where a region belongs to a group.

    Returns:
        (B, C) in [0, 1]; 0 for groups of fewer than two regions.
    """
    unit = F.normalize(regions * weights.sqrt()[:, None], dim=2)
    size = groups.sum(dim=1)
    pairs = (groups.mT @ unit).square().sum(dim=2) - groups.mT.matmul(
        unit.square().sum(dim=2, keepdim=True)
    ).squeeze(2)
    return pairs / (size * (size - 1)).clamp_min(1)
