"""Values of masks at points between their pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_masks(masks: Tensor, points: Tensor, index: Tensor | None = None) -> Tensor:
    """Read masks at points bilinearly, without a copy of the masks in floats.

    The result equals ``point_sample(masks.float()[:, None], points)``, which needs four times the
    memory of the masks. Here only the four pixels around every point are read. So time and memory
    grow with N * P.

    Args:
        masks: (T, H, W), bool.
        points: (N, P, 2) or, for the same points in all masks, (1, P, 2): x and y in [0, 1]. 0 is
            the outer edge of the first pixel, and 1 that of the last one.
        index: (N,) the mask that each row of points reads; by default all T masks, in order.

    Returns:
        (N, P) values in [0, 1], of the type of ``points``. Outside of the image masks are 0.
    """
    height, width = masks.shape[-2:]
    if index is None:
        index = torch.arange(len(masks), device=masks.device)
    start = index[:, None] * (height * width)
    pixels = masks.reshape(-1)
    columns = _neighbours(points[..., 0], width)
    value = points.new_zeros(())
    for row, row_weight in _neighbours(points[..., 1], height):
        first = start + row * width
        along_row = sum(weight * pixels[first + column] for column, weight in columns)
        value = value + row_weight * along_row
    return value


def _neighbours(position: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Find the two pixels of a row around each position, and their weights, 0 outside."""
    position = position * length - 0.5
    before = position.floor()
    share = position - before
    before = before.long()
    after = before + 1
    return [
        (before.clamp(0, length - 1), (1 - share) * (before >= 0)),
        (after.clamp(0, length - 1), share * (after < length)),
    ]
