"""The losses of the nodes' scores: tree-min, focal tree-min, and cross entropy of each level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .node_index import NodeIndex

LOSSES = ("tree_min", "focal_tree_min", "bce")
# The logit of a node that has no loss as a negative one: its sigmoid is 0 in float32.
_CERTAINLY_NOT = -1e4


def node_losses(
    logits: Tensor, labels: Tensor, index: NodeIndex, *, loss: str = "tree_min", gamma: float = 2.0
) -> list[Tensor]:
    """Compute the loss of the scores of all nodes, summed over those of each level (Eq. 4 to 6).

    A node of the label's path is scored by the least score of itself and its ancestors, another one
    by the largest score of itself and its descendants. So a score obeys the tree, and its gradient
    goes to the one node that it comes from. Two sweeps compute it in O(V) from logits: downwards
    along the path of each label, upwards over all nodes. The minimum of sigmoids is the sigmoid of
    the minimum, so nothing has to be clamped.

    Args:
        logits: (B, V, H, W) float32.
        labels: (B, H, W) int64 classes. What stands for ignored pixels must be a class, too.
        index: of the tree.
        loss: one of :data:`LOSSES`. "bce" is the plain binary cross entropy of each node.
        gamma: exponent of the factors of "focal_tree_min".

    Returns:
        For each level (B, H, W), from the classes upwards.
    """
    levels = index.split(logits)
    focal = gamma if loss == "focal_tree_min" else 0.0
    obeys = loss != "bce"
    sums: list[Tensor] = []
    nodes = [groups[labels].unsqueeze(1) for groups in index.groups]
    lowest = None
    for level, node in zip(reversed(levels), reversed(nodes)):
        own = level.gather(1, node)
        lowest = own if lowest is None or not obeys else torch.minimum(own, lowest)
        sums.insert(0, _penalty(-lowest, focal).squeeze(1))
    highest = levels[0]
    for number, (level, node) in enumerate(zip(levels, nodes)):
        if number and obeys:
            below = [each.max(dim=1).values for each in index.children_of(number, highest)]
            highest = torch.maximum(level, torch.stack(below, dim=1))
        elif number:
            highest = level
        others = highest.scatter(1, node, _CERTAINLY_NOT)
        sums[number] = sums[number] + _penalty(others, focal).sum(dim=1)
    return sums


def _penalty(wrong: Tensor, gamma: float) -> Tensor:
    """``-p^gamma log(1 - p)`` of p = sigmoid(wrong), the probability of the wrong answer."""
    loss = F.softplus(wrong)
    return loss * torch.exp(-gamma * F.softplus(-wrong)) if gamma else loss


def level_cross_entropies(
    logits: Tensor, labels: Tensor, index: NodeIndex, ignore_value: int = 255
) -> list[Tensor]:
    """Sum the cross entropy of each level over the labelled pixels; scalars, the classes first.

    Args:
        logits, index: see :func:`node_losses`.
        labels: (B, H, W) int64 classes or ``ignore_value``.
    """
    is_labelled = labels != ignore_value
    classes = labels.where(is_labelled, 0)
    return [
        F.cross_entropy(
            level,
            groups[classes].where(is_labelled, -1),
            ignore_index=-1,
            reduction="sum",
        )
        for level, groups in zip(index.split(logits), index.groups)
    ]


def mean_of_levels(
    sums: Sequence[Tensor], is_labelled: Tensor, num_labelled: Tensor, index: NodeIndex
) -> Tensor:
    """Add up the means of all levels over labelled pixels and nodes of the level.

    Args:
        sums: as of :func:`node_losses`.
        is_labelled: (B, H, W) bool.
        num_labelled: the number of labelled pixels, at least 1; a scalar.
    """
    means = [
        each.where(is_labelled, 0).sum() / (num_labelled * size)
        for each, size in zip(sums, index.tree.sizes)
    ]
    return torch.stack(means).sum()
