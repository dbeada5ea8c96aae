"""Pixel decoders with feature alignment: FaPN (Huang et al., ICCV 2021), and MSFaPN of SeMask.

They go with any backbone and with every predictor. Parameter names are those of the public SeMask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from sgr.modeling.layers.conv import conv_norm
from sgr.modeling.mask_classification.decoders.base import (
    MULTI_SCALE,
    PixelDecoderOutput,
    PyramidDecoder,
)
from sgr.modeling.mask_classification.decoders.deformable import (
    MAX_MULTI_SCALE_FEATURES,
    DeformablePixelDecoder,
)
from sgr.modeling.mask_classification.decoders.fpn import FPNPixelDecoder
from sgr.modeling.per_pixel.losses import resize

OFFSET_GROUPS = 8  # groups of channels that share their offsets
TAPS = 9  # of a 3x3 convolution


class DeformableConv(nn.Module):
    """A modulated deformable 3x3 convolution (DCN v2) whose offsets come from another map.

    Its 8 groups of input channels have offsets of their own. It costs ``9 h w C (C_out + 216)``
    multiply-adds. Offsets start at 0 and the modulation at one half.

    It is computed without autocast: torchvision's operator takes no mixed types.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.conv_offset_mask = nn.Conv2d(channels, 3 * TAPS * OFFSET_GROUPS, 3, padding=1)
        bound = 1 / math.sqrt(channels * TAPS)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, maps: Tensor, where: Tensor) -> Tensor:
        """Convolve maps (B, C, h, w) at the offsets that ``where`` (B, C, h, w) asks for."""
        dtype = self.weight.dtype
        with torch.autocast(maps.device.type, enabled=False):
            offsets, modulation = self.conv_offset_mask(where.to(dtype)).split(
                (2 * TAPS * OFFSET_GROUPS, TAPS * OFFSET_GROUPS), dim=1
            )
            return deform_conv2d(
                maps.to(dtype),
                offsets.contiguous(),
                self.weight,
                self.bias,
                padding=1,
                mask=modulation.sigmoid(),
            )


class FeatureAlignment(nn.Module):
    """Move the cells of a coarser map to where they fit a finer one, and add both (FaPN, Sec. 3.2).

    Args:
        channels: C, a multiple of 8, or of the 32 groups of a GroupNorm.
        norm: the norm of the offsets' convolution. In SeMask it is a module that is used elsewhere
            too; None stands for a GroupNorm of its own.
    """

    def __init__(self, channels: int, norm: nn.Module | None = None):
        super().__init__()
        # A norm that is replaced has no groups, which the width would have to be a multiple of.
        self.offset = conv_norm(2 * channels, channels, 1, "GN" if norm is None else "BN")
        if norm is not None:
            self.offset.norm = norm
        self.dcpack_L2 = DeformableConv(channels)

    def forward(self, lateral: Tensor, top_down: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C, h', w') -> (B, C, h, w)."""
        top_down = resize(top_down, lateral.shape[-2:])
        where = self.offset(torch.cat([lateral, 2 * top_down], dim=1))
        return F.relu(self.dcpack_L2(top_down, where)) + lateral


class AlignedPyramid(PyramidDecoder):
    """A pyramid whose levels align what comes from above: ``align_1`` and so on.

    The norm of an alignment's offsets is the norm of the same level's output convolution, one
    module under two names, as in the public models.
    """

    def add_levels(self, shapes: Iterable[ShapeSpec], conv_dim: int, norm: str) -> None:
        if conv_dim % OFFSET_GROUPS:
            raise ValueError(
                f"conv_dim (MODEL.SEM_SEG_HEAD.CONVS_DIM) is {conv_dim}; feature alignment needs a "
                f"multiple of {OFFSET_GROUPS}, the groups of its offsets"
            )
        for level, shape in enumerate(shapes, 1):
            self.add_module(f"adapter_{level}", conv_norm(shape.channels, conv_dim, 1, norm))
            output = conv_norm(conv_dim, conv_dim, 3, norm, F.relu)
            self.add_module(f"align_{level}", FeatureAlignment(conv_dim, output.norm))
            self.add_module(f"layer_{level}", output)

    def join(self, level: int, lateral: Tensor, top_down: Tensor) -> Tensor:
        return getattr(self, f"align_{level}")(lateral, lateral + top_down)


@SEM_SEG_HEADS_REGISTRY.register()
class FaPNPixelDecoder(AlignedPyramid, FPNPixelDecoder):
    """An aligned pyramid; a predictor may read its three coarsest maps.

    There is no transformer encoder, so TRANSFORMER_ENC_LAYERS has no effect.
    """

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], **options):
        """Args: see :class:`FPNPixelDecoder`."""
        super().__init__(input_shape, **options)
        count = min(len(self.in_features), MAX_MULTI_SCALE_FEATURES)
        self.output_channels[MULTI_SCALE] = [self.conv_dim] * count

    def forward(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """``features`` are at least those of ``input_shape``, each (B, C_i, h_i, w_i)."""
        maps, _ = self.decode(features)
        return PixelDecoderOutput(
            self.mask_features(maps[-1]), None, maps[:MAX_MULTI_SCALE_FEATURES]
        )


@SEM_SEG_HEADS_REGISTRY.register()
class MSFaPNPixelDecoder(AlignedPyramid, DeformablePixelDecoder):
    """Mask2Former's pixel decoder, with aligned levels below its transformer."""
