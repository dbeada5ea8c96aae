"""Sine position embedding of the cells of a feature map, as in DETR.

Reasoning modules count positions in cells (:mod:`sgr.modeling.reasoning.position_encoding`). Here
positions are relative to the size of the map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..reasoning import sine_encoding


class SinePositionEmbedding(nn.Module):
    """Embed each cell's row and column by sines and cosines of different frequencies.

    Positions are counted from 1 and scaled: the last row and the last column lie at 2 pi. So the
    embedding covers the same range in maps of all sizes. The module has no parameters.

    Args:
        embed_dim: channels of the embedding, a multiple of 4. The first half embeds the row, the
            second half the column. Even channels are sines, odd channels are cosines.
    """

    scale = 2 * math.pi

    def __init__(self, embed_dim: int):
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim must be a multiple of 4, got {embed_dim}")
        self.embed_dim = embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (1, embed_dim, h, w). Only size, type and device of ``x`` matter."""
        height, width = x.shape[-2:]
        rows, columns = self._axis(height, x.device), self._axis(width, x.device)
        embedding = torch.cat(
            [rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)]
        )
        return embedding.to(x.dtype)[None]

    def _axis(self, length: int, device: torch.device) -> Tensor:
        """(embed_dim / 2, length) embedding of the positions along one axis."""
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        position = position / (length + 1e-6) * self.scale
        return sine_encoding(position, self.embed_dim // 2).T
