"""The region mutual information of Zhao et al. (NeurIPS 2019), of the nodes of a tree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 3  # of a patch, in cells; cells are the maxima of 3 x 3 pixels
_POOL = 3
_DIAGONAL = 1e-3
_LEAST_PROBABILITY = 1e-6


def region_mutual_information(logits: Tensor, targets: Tensor, is_labelled: Tensor) -> Tensor:
    """Bound how uncertain patches of the targets are where those of the predictions are known.

    It is computed in float64 from 9 x 9 covariances over all patches of an image, for each node. It
    is negative as a rule, and less is better.

    Args:
        logits: (B, V, H, W).
        targets: (B, V, H, W), 1 for the nodes of the label's path and 0 for others.
        is_labelled: (B, H, W) bool.

    Returns:
        (B,) float64, the sum over the nodes. Images without a labelled pixel have 0. An image with
        logits that are not numbers has nan, as in other losses.

    Raises:
        ValueError: an image is smaller than 7 pixels along a side, so that it has no patch.
    """
    if min(logits.shape[-2:]) < _POOL * (SIDE - 1) + 1:
        raise ValueError(
            f"region mutual information needs images of at least {_POOL * (SIDE - 1) + 1} pixels "
            f"along each side, got {tuple(logits.shape[-2:])}; set MODEL.HSSN.RMI_WEIGHT 0.0"
        )
    mask = is_labelled.unsqueeze(1).to(logits.dtype)
    truth = _patches(targets * mask)
    predicted = _patches(logits.sigmoid() * mask + _LEAST_PROBABILITY)
    own = truth @ truth.mT
    both = truth @ predicted.mT
    other = predicted @ predicted.mT
    diagonal = _DIAGONAL * torch.eye(SIDE * SIDE, dtype=own.dtype, device=own.device)
    rest = own - both @ torch.linalg.solve_ex(other + diagonal, both.mT).result
    # If the model has diverged, the loss says so in all processes. An error in one would leave the
    # others waiting. Neither call waits for a GPU.
    factor, failed = torch.linalg.cholesky_ex(rest + diagonal)
    # log det = 2 sum log of the diagonal of the factor, of which half is taken.
    values = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) / (SIDE * SIDE)
    values = values.where(failed == 0, torch.nan)
    return values.sum(dim=1).where(is_labelled.flatten(1).any(dim=1), 0)


def _patches(maps: Tensor) -> Tensor:
    """(B, V, H, W) -> (B, V, 9, N) float64: all patches of the pooled maps, centred."""
    pooled = F.max_pool2d(maps, _POOL, stride=_POOL, padding=_POOL // 2)
    patches = F.unfold(pooled, SIDE).unflatten(1, (maps.shape[1], SIDE * SIDE)).double()
    return patches - patches.mean(dim=-1, keepdim=True)
