"""Sine and cosine encodings of positions (Eq. 1 and Sec. 3.2 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def sine_encoding(positions: Tensor, channels: int, *, temperature: float = 10000.0) -> Tensor:
    """Encode scalar positions by sines and cosines of geometrically falling frequencies.

    Channel ``2i`` holds ``sin(p / temperature^(2i / channels))`` and channel ``2i + 1`` the cosine
    of the same angle.

    Args:
        positions: (...) real positions, in cells.
        channels: channels of the encoding, even.
        temperature: ratio of the slowest to the fastest wavelength.

    Returns:
        (..., channels) encoding, of the dtype of ``positions``.

    Raises:
        ValueError: for an odd number of channels.
    """
    if channels % 2:
        raise ValueError(f"a sine encoding has an even number of channels, got {channels}")
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=positions.dtype)
    angles = positions.unsqueeze(-1) / temperature ** (steps / channels)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
