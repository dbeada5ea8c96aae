"""What losses need to know of the other workers of a distributed training."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["mean_over_workers"]


def mean_over_workers(number: float, device: torch.device) -> Tensor:
    """Mean of a number over all workers, a scalar on ``device``; all of them must call it."""
    value = torch.full((), float(number), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value
