"""Sine and cosine encodings of positions (Eq. 1 and Sec. 3.2 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

# The ratio of the longest to the shortest wavelength, as in "Attention Is All You Need".
TEMPERATURE = 10000.0


def sine_encoding(positions: Tensor, channels: int) -> Tensor:
    """Encode scalar positions by sines and cosines of geometrically falling frequencies.

    Channel ``2i`` holds ``sin(p / TEMPERATURE^(2i / channels))`` and channel ``2i + 1`` the cosine
    of the same angle.

    Args:
        positions: (...) real positions, in cells.
        channels: channels of the encoding, even.

    Returns:
        (..., channels) encoding, of the dtype of ``positions``.

    Raises:
        ValueError: for an odd number of channels.
    """
    if channels % 2:
        raise ValueError(f"a sine encoding has an even number of channels, got {channels}")
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=positions.dtype)
    angles = positions.unsqueeze(-1) / TEMPERATURE ** (steps / channels)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
