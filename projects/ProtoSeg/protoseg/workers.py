"""Sums over the workers of a distributed training. Without workers, a sum is what it was."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def num_workers() -> int:
    """The number of processes that train together, at least 1."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def sum_over_workers(value: Tensor) -> Tensor:
    """Add up a tensor over the workers, in place. All of them must call it."""
    if num_workers() > 1:
        distributed.all_reduce(value)
    return value


def logsumexp_over_workers(value: Tensor) -> Tensor:
    """``log sum exp`` of each number over the workers. All of them must call it."""
    if num_workers() == 1:
        return value
    values = [torch.empty_like(value) for _ in range(num_workers())]
    distributed.all_gather(values, value)
    return torch.stack(values).logsumexp(dim=0)
