"""Numbers in float32 where half precision is not enough."""

from __future__ import annotations

import torch
from torch import Tensor


def float32_or_wider(dtype: torch.dtype) -> torch.dtype:
    """float32, or the given type if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own type if that is wider."""
    return tensor.to(float32_or_wider(tensor.dtype))
