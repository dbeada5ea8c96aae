"""Sums over the workers of a distributed training. Without workers, a sum is what it was."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor, distributed


def sum_over_workers(value: Tensor) -> Tensor:
    """Add up a tensor over the workers, in place. All of them must call it."""
    if comm.get_world_size() > 1:
        distributed.all_reduce(value)
    return value


def logsumexp_over_workers(value: Tensor) -> Tensor:
    """``log sum exp`` of each number over the workers. All of them must call it."""
    if comm.get_world_size() == 1:
        return value
    values = [torch.empty_like(value) for _ in range(comm.get_world_size())]
    distributed.all_gather(values, value)
    return torch.stack(values).logsumexp(dim=0)
