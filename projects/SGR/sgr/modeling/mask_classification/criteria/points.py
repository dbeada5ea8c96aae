"""Values of maps and masks at points between their cells. All maps of an image share the points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Corners(NamedTuple):
    """The four cells around each of P points of a map, each (P, 4).

    Attributes:
        cells: their indices in the map, rows first.
        shares: their weights, 0 outside of the map.
    """

    cells: Tensor
    shares: Tensor

    @classmethod
    def of(cls, points: Tensor, size: tuple[int, int]) -> Corners:
        """Find the corners of (P, 2) points: x and y in [0, 1], from outer edge to outer edge."""
        (left, right), (top, bottom) = (
            _along_axis(position, length) for position, length in zip(points.T, reversed(size))
        )
        cells, shares = [], []
        for row, row_share in (top, bottom):
            for column, column_share in (left, right):
                cells.append(row * size[1] + column)
                shares.append(row_share * column_share)
        return cls(torch.stack(cells, dim=1), torch.stack(shares, dim=1))


@torch.no_grad()
def sample_maps(maps: Tensor, at: Corners) -> Tensor:
    """Read N maps (N, h, w) at P points bilinearly, without gradients: (P, N).

    ``embedding_bag`` reads a cell of all maps at once, because they lie side by side in its table.
    ``grid_sample`` would read them one by one.
    """
    table = maps.flatten(1).T.contiguous()
    return F.embedding_bag(at.cells, table, mode="sum", per_sample_weights=at.shares)


def sample_masks(masks: Tensor, at: Corners) -> Tensor:
    """Read T masks (T, H, W), bool, at P points bilinearly: (T, P) in [0, 1].

    Only the four pixels around every point are read. So no mask is copied in floats, which would
    need four times the memory of the masks.
    """
    pixels = masks.flatten(1)
    value = at.shares.new_zeros(len(masks), len(at.shares))
    for cells, shares in zip(at.cells.T, at.shares.T):
        value.addcmul_(pixels.index_select(1, cells).to(value.dtype), shares)
    return value


def _along_axis(position: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Find the two cells of a row around each position, and their weights, 0 outside."""
    position = position * length - 0.5
    before = position.floor()
    share = position - before
    before = before.long()
    after = before + 1
    return [
        (before.clamp(0, length - 1), (1 - share) * (before >= 0)),
        (after.clamp(0, length - 1), share * (after < length)),
    ]
