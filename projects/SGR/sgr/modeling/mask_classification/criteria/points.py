"""Values of masks at points between their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sample_masks"]


def sample_masks(masks: Tensor, points: Tensor, index: Tensor | None = None) -> Tensor:
    """Bilinear values of masks at points, read straight from bits.

    Equal to ``point_sample(masks.float()[:, None], points)``, which would first make floats of all
    pixels: four times the memory of the masks. Here only the four pixels around every point are
    read; time and memory grow with N * P.

    Args:
        masks: (T, H, W), bool.
        points: (N, P, 2) or, the same for all masks, (1, P, 2): x and y in [0, 1], where 0 and 1
            are the outer edges of the first and of the last pixel.
        index: (N,) the mask of each row of points; by default all T masks, in order.

    Returns:
        (N, P) values in [0, 1], in the type of ``points``. Beyond the edges all masks are 0.
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
    """The two pixels of a row around each position, and their weights, 0 beyond the edges."""
    position = position * length - 0.5
    before = position.floor()
    share = position - before
    before = before.long()
    after = before + 1
    return [
        (before.clamp(0, length - 1), (1 - share) * (before >= 0)),
        (after.clamp(0, length - 1), share * (after < length)),
    ]
