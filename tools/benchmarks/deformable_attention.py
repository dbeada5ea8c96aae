"""``deformable-attention``: reading maps of several sizes, and grid_sample level by level."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sgr.modeling.mask_classification import multi_scale_deformable_attention

from .measure import Results, Row, compare

COMPARES = (
    "multi_scale_deformable_attention beside grid_sample of each map, whose samples are kept, "
    "stacked, weighted and summed. There is a query for each cell, with its points a few cells "
    "around it. In the rows of bfloat16 maps and result have this type, locations do not; "
    "grid_sample needs one type for both and gets the maps in float32."
)

Attention = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


def literal_deformable_attention(
    value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample and sum as :func:`multi_scale_deformable_attention`, whose shapes are the same."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    cells = value.float().split([height * width for height, width in spatial_shapes], dim=1)
    grids = 2 * locations - 1
    samples = []
    for level, (height, width) in enumerate(spatial_shapes):
        each = cells[level].flatten(2).transpose(1, 2)
        each = each.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(each, grid, padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, dim=-2).flatten(-2)  # (B * M, D, N, L * P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    total = (stacked * weights).sum(dim=-1).view(batch, heads * channels, queries)
    return total.transpose(1, 2).contiguous().to(value.dtype)


def add_options(option) -> None:
    option("--cells", nargs="+", default=[64, 32, 16], help="sides of the maps")
    option("--batch", nargs="+", default=[1, 2], help="images of each case")
    option("--heads", default=8, help="M")
    option("--head-dim", default=32, help="D, channels of a head")
    option("--points", default=4, help="points per head and map")
    option("--compile", action="store_true", help="more rows: forward, SGR's compiled")


def run(args: argparse.Namespace) -> Iterator[Row]:
    shapes = [(side, side) for side in args.cells]
    cases = [
        ("forward", _forward, multi_scale_deformable_attention),
        ("forward + backward", _forward_backward, multi_scale_deformable_attention),
    ]
    if args.compile:
        # Forward only: compiling the backward pass starts threads of autograd, after which the
        # process cannot be forked to measure memory.
        compiled = torch.compile(multi_scale_deformable_attention, fullgraph=True)
        cases.append(("forward, compiled", _forward, compiled))
    for batch in args.batch:
        for dtype in (torch.float32, torch.bfloat16):
            value, locations, weights = _inputs(batch, shapes, args)
            inputs = value.to(dtype), shapes, locations, weights
            for name, measured, attention in cases:
                run_sgr = partial(measured, attention, *inputs)
                if name.endswith("compiled"):
                    run_sgr()  # so that compilation does not count
                yield compare(
                    f"{name}, {str(dtype).removeprefix('torch.')}, batch {batch}, "
                    f"{value.shape[1]} queries",
                    partial(measured, literal_deformable_attention, *inputs),
                    run_sgr,
                    args,
                )


def _inputs(
    batch: int, shapes: list[tuple[int, int]], args: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor]:
    """Make maps, locations around each cell of each map, and weights."""
    centers = torch.cat([_cell_centers(*shape) for shape in shapes])
    queries, levels = len(centers), len(shapes)
    per_point = (batch, queries, args.heads, levels, args.points)
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]
    near = centers[:, None, None, None] * sizes + 2 * torch.randn(*per_point, 2)
    # Not where cells meet: there the gradient jumps, and rounding would change it.
    between = 0.1 + 0.8 * torch.rand(*per_point, 2)
    locations = (near.floor() + between - 0.5) / sizes
    value = torch.randn(batch, queries, args.heads, args.head_dim)
    weights = torch.randn(per_point).flatten(3).softmax(dim=-1).view(per_point)
    return tuple(tensor.to(args.device) for tensor in (value, locations, weights))


def _cell_centers(height: int, width: int) -> Tensor:
    """Give (h * w, 2) x and y of the cells, relative to the size of the map."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1).flatten(0, 1)


def _forward(attention: Attention, value: Tensor, shapes, *points: Tensor) -> Results:
    with torch.no_grad():
        return [attention(value, shapes, *points)]


def _forward_backward(attention: Attention, value: Tensor, shapes, *points: Tensor) -> Results:
    """Compute the output and the gradients of all three inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in (value, *points)]
    output = attention(inputs[0], shapes, *inputs[1:])
    gradients = torch.autograd.grad(output.float().square().mean(), inputs)
    return [output.detach(), *gradients]
