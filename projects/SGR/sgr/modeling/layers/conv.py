"""The convolution that most heads and decoders are made of. It needs Detectron2."""

from __future__ import annotations

from collections.abc import Callable

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: str,
    activation: Callable[[Tensor], Tensor] | None = None,
    *,
    init: Callable[[nn.Module], None] = weight_init.c2_xavier_fill,
) -> Conv2d:
    """Build a convolution that keeps the map's size, with its norm and activation.

    Args:
        kernel_size: side of the kernel, odd.
        norm: see Detectron2's ``get_norm``; "" leaves the norm out and gives a bias instead.
        activation: called on the result; None leaves it as it is.
        init: draws the weights.
    """
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    init(layer)
    return layer
