"""Connected components at the resolution of the regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ComponentMaps(NamedTuple):
    """The components of a batch, image by image.

    Attributes:
        indices: for each image (H, W) integers, the index of the pixel's component or -1. Images
            may differ in size; none is padded.
        counts: the number of components of each image.
    """

    indices: Sequence[Tensor]
    counts: Sequence[int]

    @classmethod
    def of(cls, indices: Sequence[Tensor]) -> ComponentMaps:
        """Count the components of maps, which waits for their device.

        Raises:
            ValueError: if a map is not (H, W) integers, has an index below -1, or leaves out an
                index below its largest one.
        """
        indices = [_checked_map(component_map) for component_map in indices]
        return cls(indices, [_count(each) for each in indices])


class ComponentTargets(NamedTuple):
    """Components of a batch, averaged over the cells.

    A region is constant on a cell. Therefore losses over cells, weighted by ``weights``, equal
    losses over the labelled pixels, with every region repeated over the pixels of its cells.

    Attributes:
        masks: (B, C, N) share of a cell's labelled pixels that belong to the component, in [0, 1];
            N = h * w cells, C the largest number of components in the batch.
        weights: (B, N) share of a cell's pixels that carry a label, in [0, 1]. Ignored pixels, and
            those of dropped components and of the padding, carry none.
        counts: components of each image, on the host. The masks beyond them are zero.
    """

    masks: Tensor
    weights: Tensor
    counts: list[int]


def component_targets(
    component_maps: Sequence[Tensor],
    counts: Sequence[int],
    grid: tuple[int, int],
    stride: int,
    device: torch.device | str,
) -> ComponentTargets:
    """Average component maps over cells of ``stride`` x ``stride`` pixels.

    It takes one scatter-add over the pixels of the batch and O(pixels + B * C * N) memory, without
    full-size masks. With maps on the device, or pinned, nothing waits for the device.

    Args:
        component_maps: for each image (H, W) integers: index of the pixel's component, or -1. The
            images may differ in size, but must fit in the grid. Other indices count as -1.
        counts: number of components of each image.
        grid: (h, w).
        stride: pixels per cell.
        device: the device of the targets.

    Raises:
        ValueError: if a map is larger than the grid covers, or no map of integers.
    """
    height, width = grid[0] * stride, grid[1] * stride
    num_cells, most = grid[0] * grid[1], max(counts, default=0)
    padded = []
    for component_map in map(_checked_map, component_maps):
        bottom, right = height - component_map.shape[0], width - component_map.shape[1]
        if bottom < 0 or right < 0:
            raise ValueError(
                f"a component map of {tuple(component_map.shape)} pixels does not fit in "
                f"{grid[0]}x{grid[1]} cells of {stride} pixels: pad the images to a multiple of "
                "the stride, and check the stride"
            )
        component_map = component_map.to(device, non_blocking=True)
        padded.append(F.pad(component_map, (0, right, 0, bottom), value=-1))
    components = torch.stack(padded)
    components = components.masked_fill_(components >= most, -1).clamp_(min=-1).long()

    # Bin 0 of each image takes the pixels without a component.
    batch = len(component_maps)
    image = torch.arange(batch, device=device)[:, None, None]
    row = torch.arange(height, device=device)[:, None] // stride
    column = torch.arange(width, device=device) // stride
    bins = (image * (most + 1) + components + 1) * num_cells + row * grid[1] + column
    pixels = torch.zeros(batch * (most + 1) * num_cells, device=device)
    pixels.scatter_add_(0, bins.flatten(), torch.ones_like(bins, dtype=pixels.dtype).flatten())
    pixels = pixels.view(batch, most + 1, num_cells)[:, 1:]

    labelled = pixels.sum(dim=1)
    masks = pixels / labelled.clamp_min(1)[:, None]
    return ComponentTargets(masks, labelled / stride**2, list(counts))


def _count(component_map: Tensor) -> int:
    """The number of components of a map, whose indices have no gap."""
    if component_map.numel() and (least := int(component_map.min())) < -1:
        raise ValueError(
            f"a component map has the index {least}; pixels without a component have -1"
        )
    indices = component_map[component_map >= 0]
    most = int(indices.max()) if len(indices) else -1
    # With more indices than pixels there is a gap, and bincount could need any memory.
    if most >= len(indices) or not indices.bincount().all():
        raise ValueError(
            f"a component map has the index {most} and leaves out a lower one, which would be a "
            "component without pixels; number the components from 0 without gaps, and give pixels "
            "without a component -1, not 255"
        )
    return most + 1


def _checked_map(component_map: Tensor) -> Tensor:
    """A component map, or the same of a NumPy array."""
    component_map = torch.as_tensor(component_map)
    dtype = component_map.dtype
    if component_map.dim() != 2 or dtype.is_floating_point or dtype == torch.bool:
        raise ValueError(
            "a component map is (H, W) integers, the index of a component or -1; got "
            f"{tuple(component_map.shape)} of {dtype}"
        )
    # Bytes cannot hold the -1 of padding.
    return component_map.short() if dtype == torch.uint8 else component_map
