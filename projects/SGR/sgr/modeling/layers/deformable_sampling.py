"""The sampling of multi-scale deformable attention (Zhu et al., "Deformable DETR", Sec. 4.1).

It is plain PyTorch. The literal version is
tools/benchmarks/deformable_attention.py:literal_deformable_attention.

Each query reads a few points of every feature map and sums what it reads with weights. Bilinear
interpolation is a weighted sum too: of the four cells around a point. So the whole sampling is the
product of a sparse matrix, with ``4 * levels * points`` entries per row, and a table of all cells.
``embedding_bag`` computes this product without a copy of the cells that it reads. The gradients are
products with the same matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .exporting import is_exporting
from .precision import float32_or_wider

Shapes = Sequence[tuple[int, int]]


def multi_scale_deformable_attention(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Read feature maps of several sizes at given points, and sum what was read with weights.

    For query n and head m the result is ``sum over l, p of weight[n, m, l, p] * map_l(location[n,
    m, l, p])``. A map is interpolated bilinearly and is zero outside.

    Locations and sums are in float32 if the inputs are in half precision. The gradients are exact.
    They cannot be differentiated again.

    Memory, beside inputs and output: forward, a few arrays of B * N * M * L * P numbers and one
    float32 copy of the maps with zeros around them (for strides 8, 16 and 32 it has 1.4 times the
    elements of ``value``); backward, about twenty such arrays and two such copies. What the points
    read, D numbers each, is never stored. Only the inputs are kept for the backward pass.

    While a model is exported, and on devices other than CPUs and CUDA's, ``grid_sample`` reads the
    maps level by level. That is slower, but ONNX knows it.

    Args:
        value: (B, S, M, D) cells of all maps, one map after the other, rows first; M heads of D
            channels; S is the sum of h_l * w_l.
        spatial_shapes: (h_l, w_l) of each of the L maps.
        sampling_locations: (B, N, M, L, P, 2) points (x, y) relative to the map's size: (0, 0) is
            the corner of the first cell, (1, 1) that of the last one.
        attention_weights: (B, N, M, L, P).

    Returns:
        (B, N, M * D), of ``value``'s type.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    spatial_shapes = [(height, width) for height, width in spatial_shapes]
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    inputs = value, sampling_locations, attention_weights
    if is_exporting() or value.device.type not in ("cpu", "cuda"):
        return _read_by_grid_sample(*inputs, spatial_shapes)
    needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if needs_gradients and not torch.jit.is_tracing():  # traces count forward operations
        return _ReadPoints.apply(*inputs, spatial_shapes)
    return _read_points(*inputs, spatial_shapes)


def sizes_of(spatial_shapes: Shapes, like: Tensor) -> Tensor:
    """Make widths and heights of the maps for each of (..., L, P, 2) points: (L, P, 2)."""
    # Copying a list to a GPU would wait for the GPU.
    sizes = [size for height, width in spatial_shapes for size in (width, height)]
    of_maps = torch.cat([like.new_full((1,), size) for size in sizes]).view(-1, 1, 2)
    # Not only expanded: PyTorch's loops on CPUs are twenty times as slow on rows of two numbers.
    return of_maps.expand(-1, like.shape[-2], -1).contiguous()


class _Canvas(NamedTuple):
    """Where the maps lie in one picture: below each other, with zeros around each.

    There are two rows and columns of zeros before a map and two behind it. A point outside of the
    map is moved to a place where all four cells around it are zero. So no point needs a check.

    The zeros behind a map are shared: its last rows with the next map, and its last columns with
    the beginning of the next row, because cells are counted row after row. All rows have one
    length. So the distances between the four cells of a point are the same in every map.

    Attributes:
        tops: first row of the zeros before each map.
        rows, columns: the picture's size.
    """

    tops: list[int]
    rows: int
    columns: int

    @classmethod
    def of(cls, spatial_shapes: Shapes) -> _Canvas:
        tops, rows = [], 0
        for height, _ in spatial_shapes:
            tops.append(rows)
            rows = rows + 2 + height
        # Behind the last map two rows of zeros, and another that its last columns run over to.
        return cls(tops, rows + 3, max(width for _, width in spatial_shapes) + 2)

    def maps(self, picture: Tensor, spatial_shapes: Shapes) -> list[Tensor]:
        """Give (B, h_l, w_l, M, D) views of the maps in a picture (B, M, rows, columns, D)."""
        return [
            picture[:, :, top + 2 : top + 2 + height, 2 : 2 + width].permute(0, 2, 3, 1, 4)
            for top, (height, width) in zip(self.tops, spatial_shapes)
        ]

    def corners(self) -> tuple[int, int, int, int]:
        """Give the distances from a point's first cell to all four.

        The order is the first cell itself, then right, below and below right.
        """
        return 0, 1, self.columns, self.columns + 1


class _Points(NamedTuple):
    """Sampling points as arrays (B * N * M, L * P), with a row for each image, query and head.

    Attributes:
        cell: index, in the table of all cells, of the upper left of the four cells around a point.
        x, y: distance from the centre of that cell to the point, in cells, in [0, 1].
    """

    cell: Tensor
    x: Tensor
    y: Tensor


def _paint(value: Tensor, spatial_shapes: Shapes, canvas: _Canvas, dtype: torch.dtype) -> Tensor:
    """Turn (B, S, M, D) maps into (B * M * rows * columns, D), the cells of all pictures."""
    batch, _, heads, channels = value.shape
    size = (batch, heads, canvas.rows, canvas.columns, channels)
    picture = torch.zeros(size, dtype=dtype, device=value.device)
    cells = value.split([height * width for height, width in spatial_shapes], dim=1)
    for there, here, shape in zip(
        canvas.maps(picture, spatial_shapes), cells, spatial_shapes, strict=True
    ):
        there.copy_(here.unflatten(1, shape))
    return picture.flatten(0, 3)


def _locate(
    locations: Tensor, spatial_shapes: Shapes, canvas: _Canvas, dtype: torch.dtype
) -> _Points:
    """Turn (B, N, M, L, P, 2) relative locations into points on the canvas."""
    batch, queries, heads, levels, points, _ = locations.shape
    size_of_rows = (batch * queries * heads, levels * points)
    device = locations.device
    locations = locations.to(dtype)
    sizes = sizes_of(spatial_shapes, locations)
    first = sizes.new_full((), 1.5)  # the centre of a map's first cell is at 2, behind the zeros
    cells, fractions = [], []
    for axis in (0, 1):
        size = sizes[..., axis].contiguous()
        at = torch.addcmul(first, locations[..., axis], size)
        at = torch.minimum(at.clamp_(min=0), size + 2)
        # A NaN gets a valid index. Its fraction stays NaN and makes the result NaN.
        cell = at.floor().nan_to_num_()
        fractions.append(at.sub_(cell).reshape(size_of_rows))
        cells.append(cell.to(_index_dtype(locations, canvas)))
    column, row = cells
    first_row = torch.arange(batch * heads, device=device, dtype=row.dtype) * canvas.rows
    tops = torch.cat([row.new_full((1,), top) for top in canvas.tops])
    first_row = first_row.view(batch, 1, heads, 1, 1) + tops[:, None]
    cell = row.add_(first_row).mul_(canvas.columns).add_(column)
    return _Points(cell.reshape(size_of_rows), *fractions)


def _index_dtype(locations: Tensor, canvas: _Canvas) -> torch.dtype:
    """Choose 32 bits if they can number all cells and the four entries of all points."""
    batch, _, heads = locations.shape[:3]
    largest = max(batch * heads * canvas.rows * canvas.columns, 2 * locations.numel())
    return torch.int32 if largest < 2**31 else torch.int64


def _shares(weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split each point's weight among the four cells around it, in the order of ``corners``."""
    below = weights * y
    above = weights - below
    above_right, below_right = above * x, below * x
    return above - above_right, above_right, below - below_right, below_right


def _weighted_sums(table: Tensor, index: Tensor, weights: Tensor, offsets=None) -> Tensor:
    """Sum rows of a (rows, D) table to (bags, D) with weights, see ``F.embedding_bag``."""
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights)


@torch.no_grad()
def _read_points(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """Compute :func:`multi_scale_deformable_attention` without gradients."""
    canvas = _Canvas.of(shapes)
    dtype = float32_or_wider(value.dtype)
    table = _paint(value, shapes, canvas, dtype)
    cell, x, y = _locate(locations, shapes, canvas, dtype)
    shares = _shares(weights.to(dtype).reshape(cell.shape), x, y)
    # A table that is shifted by a corner's distance needs no new indices for that corner.
    total = _weighted_sums(table, cell, shares[0])
    for distance, share in zip(canvas.corners()[1:], shares[1:]):
        total += _weighted_sums(table[distance:], cell, share)
    batch, queries, heads = locations.shape[:3]
    return total.view(batch, queries, heads * value.shape[-1]).to(value.dtype)


class _ReadPoints(torch.autograd.Function):
    """:func:`_read_points` with gradients. It keeps only its inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return _read_points(value, locations, weights, shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        for_value, for_locations, for_weights, _ = ctx.needs_input_grad
        canvas = _Canvas.of(ctx.shapes)
        dtype = float32_or_wider(value.dtype)
        points = _locate(locations, ctx.shapes, canvas, dtype)
        flat_weights = weights.to(dtype).reshape(points.cell.shape)
        # D numbers for each row of the points.
        channels = value.shape[-1]
        gradient = gradient.to(dtype).reshape(len(points.cell), channels).contiguous()
        of_value = of_locations = of_weights = None
        if for_locations or for_weights:
            table = _paint(value, ctx.shapes, canvas, dtype)
            by_x, by_y, of_weights = _gradients_of_points(gradient, table, points, canvas)
            del table
            by_cells = torch.stack((by_x.mul_(flat_weights), by_y.mul_(flat_weights)), dim=-1)
            of_locations = by_cells.view(locations.shape)
            of_locations = of_locations.mul_(sizes_of(ctx.shapes, of_locations))
            of_locations = of_locations.to(locations.dtype)
            of_weights = of_weights.view(weights.shape).to(weights.dtype)
        if for_value:
            batch, _, heads, _ = value.shape
            picture = _gradient_of_table(
                gradient, flat_weights, points, canvas, batch * heads * canvas.rows
            ).view(batch, heads, canvas.rows, canvas.columns, channels)
            maps = [view.flatten(1, 2) for view in canvas.maps(picture, ctx.shapes)]
            of_value = torch.cat(maps, dim=1).to(value.dtype)
        return of_value, of_locations, of_weights, None


def _gradients_of_points(
    gradient: Tensor, table: Tensor, points: _Points, canvas: _Canvas
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives by x and y, in cells and for a weight of 1, and by the weight.

    All have the shape of ``points.cell``. ``gradient`` (B * N * M, D) is that of the output.
    """
    distances = [points.cell.new_full((1,), distance) for distance in canvas.corners()]
    index = points.cell[:, None] + torch.cat(distances)[:, None]  # (B * N * M, 4, L * P)
    rows, entries = len(index), index.shape[1] * index.shape[2]
    bags = torch.arange(rows, device=index.device, dtype=index.dtype)
    # The scalar products of the gradient with each cell that is read. PyTorch has no public
    # operator for them. Public ways make forward and backward longer: 1.2 times by autograd
    # of F.embedding_bag, which computes its sums once more for nothing, and 1.5 times by
    # index_select and bmm of the best number of rows at a time (one CPU core, sizes of
    # ``tools/benchmark.py deformable-attention``).
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient,
        table,
        index.flatten(),
        bags * entries,
        bags[:, None].expand(-1, entries).flatten(),
        0,  # mode "sum"
    )
    first, right, below, below_right = products.view(index.shape).unbind(dim=1)
    across_above, across_below = right - first, below_right - below
    above = torch.addcmul(first, across_above, points.x)
    by_y = torch.addcmul(below, across_below, points.x).sub_(above)
    by_x = torch.addcmul(across_above, across_below.sub_(across_above), points.y)
    return by_x, by_y, above.addcmul_(by_y, points.y)


def _gradient_of_table(
    gradient: Tensor, weights: Tensor, points: _Points, canvas: _Canvas, rows: int
) -> Tensor:
    """Turn the (B * N * M, D) gradient of the output into that of the table, (cells, D).

    This is the product with the transposed matrix. The points are sorted by cell, and each cell
    sums the gradients of the queries that have read it. No two threads write to one place, so the
    result is reproducible.
    """
    per_row = points.cell.shape[1]
    cell, order = points.cell.flatten().sort()
    cells = torch.arange(rows * canvas.columns, device=cell.device, dtype=cell.dtype)
    offsets = torch.searchsorted(cell, cells).to(cell.dtype)
    reader = order.div(per_row, rounding_mode="floor").to(cell.dtype)
    weights, x, y = (array.flatten()[order] for array in (weights, points.x, points.y))
    total = gradient.new_zeros(len(cells), gradient.shape[1])
    for distance, share in zip(canvas.corners(), _shares(weights, x, y)):
        # The zeros at the end keep the other three cells of every point inside of the table.
        sums = _weighted_sums(gradient, reader, share, offsets[: len(cells) - distance])
        total[distance:] += sums
    return total


def _read_by_grid_sample(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
) -> Tensor:
    """Compute :func:`multi_scale_deformable_attention` level by level with operators of ONNX."""
    dtype = float32_or_wider(value.dtype)
    cells = value.to(dtype).split([height * width for height, width in shapes], dim=1)
    grids = (2 * locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1).unbind(dim=2)
    weights = weights.to(dtype).transpose(1, 2).flatten(0, 1)[:, None].unbind(dim=3)
    total: Any = 0
    for level, shape in enumerate(shapes):
        feature_map = cells[level].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, shape)
        read = F.grid_sample(feature_map, grids[level], align_corners=False)  # (B * M, D, N, P)
        total = total + (read * weights[level]).sum(dim=-1)
    total = total.unflatten(0, value.shape[:3:2]).flatten(1, 2)  # (B, M * D, N)
    return total.transpose(1, 2).to(value.dtype)


def _check_shapes(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raise a ValueError unless the arguments of the public function fit each other."""
    if value.dim() != 4 or locations.dim() != 6:
        raise ValueError(
            "value must be (B, S, heads, D) and sampling_locations (B, N, heads, L, P, 2), "
            f"got {tuple(value.shape)} and {tuple(locations.shape)}"
        )
    cells = sum(height * width for height, width in shapes)
    if value.shape[1] != cells:
        raise ValueError(f"maps of {list(shapes)} have {cells} cells, value has {value.shape[1]}")
    expected = (value.shape[0], value.shape[2], len(shapes), 2)
    if tuple(locations.shape[i] for i in (0, 2, 3, 5)) != expected:
        raise ValueError(
            f"sampling_locations must be (B, N, heads, L, P, 2) with B {expected[0]}, heads "
            f"{expected[1]} and L {expected[2]}, got {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"attention_weights must be {tuple(locations.shape[:-1])} like sampling_locations, "
            f"got {tuple(weights.shape)}"
        )
