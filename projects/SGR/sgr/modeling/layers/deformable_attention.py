"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", Sec. 4.1) as a module.

:mod:`.deformable_sampling` has the sampling, which takes nearly all of the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checks import check_at_least_one, check_heads
from .deformable_sampling import Shapes, multi_scale_deformable_attention, sizes_of
from .precision import float32_or_wider


class DeformableAttention(nn.Module):
    """Attention of each query to a few learned points around its place, in maps of several sizes.

    The offsets of the points and their weights are linear functions of the query. At the start all
    weights are equal, and each head looks in a direction of its own: its points are 1, 2, ... cells
    away. Parameter names are those of Mask2Former.

    Args:
        embed_dim: C, channels of queries and maps.
        num_levels: L, maps.
        num_heads: M, a divisor of C.
        num_points: P, points per head and map, at least 1.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``, or there is no point.
    """

    def __init__(
        self, embed_dim: int, *, num_levels: int = 3, num_heads: int = 8, num_points: int = 4
    ):
        super().__init__()
        check_heads(num_heads, embed_dim)
        check_at_least_one("num_points", num_points)
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        total_points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, total_points * 2)
        self.attention_weights = nn.Linear(embed_dim, total_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto a square
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)  # (M, L, P, 2)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            parameter.zero_()
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            projection.bias.zero_()

    def forward(
        self, query: Tensor, reference_points: Tensor, maps: Tensor, spatial_shapes: Shapes
    ) -> Tensor:
        """
        Args:
            query: (B, N, C).
            reference_points: (B or 1, N, 2) places (x, y) of the queries, relative to the size of
                a map as in :func:`multi_scale_deformable_attention`.
            maps: (B, S, C) cells of all maps, one map after the other, rows first.
            spatial_shapes: (h_l, w_l) of the L maps.

        Returns:
            (B, N, C).

        Raises:
            ValueError: there are not L maps.
        """
        if len(spatial_shapes) != self.num_levels:
            raise ValueError(f"made for {self.num_levels} maps, got {len(spatial_shapes)}")
        per_point = (self.num_heads, self.num_levels, self.num_points)
        # Half precision would move far points by whole cells.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(self.sampling_offsets.weight.dtype)
            offsets = self.sampling_offsets(query).unflatten(-1, (*per_point, 2))
            weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
            dtype = float32_or_wider(query.dtype)
            # PyTorch's softmax on CPUs is ten times as slow along rows of so few numbers.
            weights = weights.movedim(-1, 0).contiguous().softmax(0, dtype=dtype).movedim(0, -1)
            weights = weights.unflatten(-1, per_point[1:])
            places = reference_points[:, :, None, None, None].to(dtype)
            places = places.expand(-1, -1, -1, *per_point[1:], -1).contiguous()
            locations = places + offsets / sizes_of(spatial_shapes, places)
        value = self.value_proj(maps).unflatten(-1, (self.num_heads, -1))
        read = multi_scale_deformable_attention(value, spatial_shapes, locations, weights)
        return self.output_proj(read)
