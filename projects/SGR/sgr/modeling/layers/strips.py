"""Maps that are computed a strip of rows at a time, so that no full-size map is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

# Elements of a strip's largest tensor. A few such tensors exist at a time. In float32 each takes
# 16 MiB, which is the largest of the fast sizes. On a CPU 1 to 16 MiB take the same time. 64 MiB
# take up to twice as long, because the allocator asks the system for such blocks again each time.
# On a GPU fewer strips mean fewer launches.
STRIP_ELEMENTS = 4 * 2**20


@dataclass(frozen=True)
class Strips:
    """A (C, H, W) map whose strips of rows are computed on demand.

    :meth:`of` wraps a tensor. The other methods add steps. Iteration goes from top to bottom and
    gives pairs: a slice of rows, and the (C, rows, W) tensor of about ``STRIP_ELEMENTS`` elements.
    Nothing is kept, so every iteration computes the map again. Nothing waits for the device.

    Attributes:
        shape: (C, H, W).
        rows: ``rows(start, stop)`` computes the (C, stop - start, W) tensor of these rows. It may
            be a view of the original data.
        row_elements: elements per row of the largest tensor that the steps make.
        dtype, device: of the tensors.
    """

    shape: tuple[int, int, int]
    rows: Callable[[int, int], Tensor]
    row_elements: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Strips:
        """Wrap a (C, H, W) floating-point tensor."""
        channels, height, width = tensor.shape
        return cls(
            shape=(channels, height, width),
            rows=lambda start, stop: tensor[:, start:stop],
            row_elements=channels * width,
            dtype=tensor.dtype,
            device=tensor.device,
        )

    def select(self, channels: Tensor) -> Strips:
        """Take the channels of these (N,) indices; they are copied strip by strip."""
        return replace(
            self,
            shape=(len(channels), *self.shape[1:]),
            rows=lambda start, stop: self.rows(start, stop)[channels],
        )

    def argmax(self) -> Tensor:
        """(H, W) int32: the channel of the largest value, without a full-size copy of the map."""
        result = torch.empty(self.shape[1:], dtype=torch.int32, device=self.device)
        for rows, strip in self:
            # On a CPU this is more than twice as fast as argmax.
            result[rows] = strip.max(0).indices
        return result

    def crop(self, height: int, width: int) -> Strips:
        """Take the upper left part."""
        return replace(
            self,
            shape=(self.shape[0], height, width),
            rows=lambda start, stop: self.rows(start, stop)[:, :, :width],
        )

    def apply(self, function: Callable[[Tensor], Tensor], *, channels: int) -> Strips:
        """Apply a function (C, h, W) -> (channels, h, W) to each strip."""
        _, height, width = self.shape
        return replace(
            self,
            shape=(channels, height, width),
            rows=lambda start, stop: function(self.rows(start, stop)),
            row_elements=max(self.row_elements, channels * width),
        )

    def resize(self, height: int, width: int) -> Strips:
        """Resize the map bilinearly, as ``F.interpolate`` does without ``align_corners``.

        A strip of the result computes only the rows of this map that it reads. Where two strips
        meet, up to two of these rows are computed twice.
        """
        channels, old_height, old_width = self.shape
        if (height, width) == (old_height, old_width):
            return self
        upper, weight = _rows_read(old_height, height)
        first = upper.tolist()  # on the CPU, so nothing waits for a GPU
        upper = upper.to(self.device, non_blocking=True)
        weight = weight.to(self.dtype).to(self.device, non_blocking=True)

        def rows(start: int, stop: int) -> Tensor:
            begin, end = first[start], min(first[stop - 1] + 2, old_height)
            above = upper[start:stop] - begin
            below = (above + 1).clamp(max=end - begin - 1)
            source = self.rows(begin, end)
            # Rows first: masks grow, and before the columns grow the map is narrower.
            source = torch.lerp(source[:, above], source[:, below], weight[start:stop, None])
            return F.interpolate(
                source[:, None], (stop - start, width), mode="bilinear", align_corners=False
            )[:, 0]

        return replace(
            self,
            shape=(channels, height, width),
            rows=rows,
            row_elements=max(channels * width, math.ceil(self.row_elements * old_height / height)),
        )

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        height = self.shape[1]
        step = max(1, STRIP_ELEMENTS // max(1, self.row_elements))
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield slice(start, stop), self.rows(start, stop)


def _rows_read(old_height: int, height: int) -> tuple[Tensor, Tensor]:
    """The upper row (int64) that each row of a bilinear resize reads, and the lower row's weight.

    The lower row is the next one or, at the lower border, the same.
    """
    scale = torch.tensor(old_height, dtype=torch.float32) / height
    position = scale * (torch.arange(height, dtype=torch.float32) + 0.5) - 0.5
    position = position.clamp(0, old_height - 1)
    upper = position.floor()
    return upper.long(), position - upper
