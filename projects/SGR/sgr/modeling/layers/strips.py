"""Maps of an image that are computed a strip of rows at a time, so that none is full-size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["STRIP_ELEMENTS", "Strips"]

# Elements of a strip's largest tensor; a few such tensors exist at a time. In float32 16 MiB, the
# largest of the fast sizes: on a CPU 1 to 16 MiB take the same time and 64 MiB up to twice as much,
# because the allocator asks the system for such blocks anew each time; on a GPU fewer strips are
# fewer launches.
STRIP_ELEMENTS = 4 * 2**20


@dataclass(frozen=True)
class Strips:
    """A (C, H, W) map, of which strips of rows are computed when they are asked for.

    :meth:`of` makes one of a tensor; the other methods add steps. Iteration goes through the map
    from top to bottom, as pairs of a slice of the rows and the (C, rows, W) tensor, in strips of
    about ``STRIP_ELEMENTS`` elements. Nothing is kept, so every pass computes the map again; and
    nothing waits for the device.

    Attributes:
        shape: (C, H, W).
        rows: ``rows(start, stop)`` computes the (C, stop - start, W) tensor of these rows. It may
            be a view of somebody's data.
        row_elements: elements that a row takes in the largest tensor on the way to it.
        dtype, device: of the tensors.
    """

    shape: tuple[int, int, int]
    rows: Callable[[int, int], Tensor]
    row_elements: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Strips:
        """The strips of a (C, H, W) floating-point tensor."""
        channels, height, width = tensor.shape
        return cls(
            shape=(channels, height, width),
            rows=lambda start, stop: tensor[:, start:stop],
            row_elements=channels * width,
            dtype=tensor.dtype,
            device=tensor.device,
        )

    def select(self, channels: Tensor) -> Strips:
        """The channels of these indices (N,), copied strip by strip."""
        return Strips(
            shape=(len(channels), *self.shape[1:]),
            rows=lambda start, stop: self.rows(start, stop)[channels],
            row_elements=self.row_elements,
            dtype=self.dtype,
            device=self.device,
        )

    def crop(self, height: int, width: int) -> Strips:
        """The upper left part."""
        return Strips(
            shape=(self.shape[0], height, width),
            rows=lambda start, stop: self.rows(start, stop)[:, :, :width],
            row_elements=self.row_elements,
            dtype=self.dtype,
            device=self.device,
        )

    def apply(self, function: Callable[[Tensor], Tensor], *, channels: int) -> Strips:
        """The map that ``function``, (C, h, W) -> (channels, h, W), makes of each strip."""
        _, height, width = self.shape
        return Strips(
            shape=(channels, height, width),
            rows=lambda start, stop: function(self.rows(start, stop)),
            row_elements=max(self.row_elements, channels * width),
            dtype=self.dtype,
            device=self.device,
        )

    def resize(self, height: int, width: int) -> Strips:
        """The map resized bilinearly, as by ``F.interpolate`` without ``align_corners``.

        A strip computes no more of this map than the rows that it reads. Where strips meet, up to
        two of these rows are computed for both.
        """
        channels, old_height, old_width = self.shape
        if (height, width) == (old_height, old_width):
            return self
        upper, weight = _rows_read(old_height, height)
        first = upper.tolist()  # on the CPU: nobody waits
        upper, weight = upper.to(self.device), weight.to(self.device, self.dtype)

        def rows(start: int, stop: int) -> Tensor:
            begin, end = first[start], min(first[stop - 1] + 2, old_height)
            above = upper[start:stop] - begin
            below = (above + 1).clamp(max=end - begin - 1)
            source = self.rows(begin, end)
            # Rows first: that is on the narrower map where maps grow, as those of masks do.
            source = torch.lerp(source[:, above], source[:, below], weight[start:stop, None])
            return F.interpolate(
                source[:, None], (stop - start, width), mode="bilinear", align_corners=False
            )[:, 0]

        return Strips(
            shape=(channels, height, width),
            rows=rows,
            row_elements=max(channels * width, math.ceil(self.row_elements * old_height / height)),
            dtype=self.dtype,
            device=self.device,
        )

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        height = self.shape[1]
        step = max(1, STRIP_ELEMENTS // max(1, self.row_elements))
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield slice(start, stop), self.rows(start, stop)


def _rows_read(old_height: int, height: int) -> tuple[Tensor, Tensor]:
    """Where the rows of a bilinear resize lie between those that they are made of.

    Returns:
        (height,) int64, the upper one of the two rows read; and (height,) float32, the weight of
        the lower one, which is the next row or, at the lower border, the same. In float32, in
        which ``F.interpolate`` computes them.
    """
    scale = torch.tensor(old_height, dtype=torch.float32) / height
    position = scale * (torch.arange(height, dtype=torch.float32) + 0.5) - 0.5
    position = position.clamp(0, old_height - 1)
    upper = position.floor()
    return upper.long(), position - upper
