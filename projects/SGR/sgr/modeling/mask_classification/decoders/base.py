"""What pixel decoders have in common: their output, their builder and the top-down pyramid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.conv import conv_norm

# A predictor that reads PixelDecoderOutput.multi_scale_features asks for them by this name.
MULTI_SCALE = "multi_scale_pixel_decoder"


class PixelDecoderOutput(NamedTuple):
    """What a pixel decoder makes of a backbone's features.

    Attributes:
        mask_features: (B, mask_dim, h, w) embeddings of the cells.
        encoder_features: (B, conv_dim, h', w') output of the transformer encoder at the coarsest
            stride, or None if there is no encoder.
        multi_scale_features: (B, conv_dim, h_l, w_l) maps of several strides, the coarsest first,
            or None if the decoder makes none.
    """

    mask_features: Tensor
    encoder_features: Tensor | None = None
    multi_scale_features: list[Tensor] | None = None


class PyramidDecoder(nn.Module):
    """Base of the pixel decoders with a top-down feature pyramid (FPN).

    The parts of its levels are ``adapter_1``, ``layer_1``, ``adapter_2``, ..., from 1 at the finest
    stride, as in public checkpoints.

    Attributes:
        mask_stride: pixels per cell of the mask features.
        output_channels: channels of what a predictor may read besides the backbone's features, by
            its name in ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE``.
        upsampling: the mode of ``F.interpolate`` that resizes a level to the next finer one.
    """

    mask_stride: int
    output_channels: dict[str, int | list[int]]
    upsampling = "nearest"

    def add_levels(self, shapes: Iterable[ShapeSpec], conv_dim: int, norm: str) -> None:
        """Add the convolutions of the levels that read ``shapes``, the finest first."""
        for level, shape in enumerate(shapes, 1):
            self.add_module(f"adapter_{level}", conv_norm(shape.channels, conv_dim, 1, norm))
            self.add_module(f"layer_{level}", conv_norm(conv_dim, conv_dim, 3, norm, F.relu))

    def descend(self, y: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Go down the pyramid from ``y`` through the features of all levels, the finest first.

        Returns:
            ``y`` and the map of every level, the finest last.
        """
        maps = [y]
        for level in range(len(features), 0, -1):
            lateral = getattr(self, f"adapter_{level}")(features[level - 1])
            top_down = F.interpolate(y, size=lateral.shape[-2:], mode=self.upsampling)
            y = getattr(self, f"layer_{level}")(self.join(level, lateral, top_down))
            maps.append(y)
        return maps

    def join(self, level: int, lateral: Tensor, top_down: Tensor) -> Tensor:
        """Join what a level reads with what comes from above, both (B, conv_dim, h, w)."""
        return lateral + top_down


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the pixel decoder that ``cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names.

    Args:
        input_shape: the backbone's output features.

    Raises:
        ValueError: no pixel decoder of that name is registered, or the backbone does not give a
            feature of ``MODEL.SEM_SEG_HEAD.IN_FEATURES``.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    if name not in SEM_SEG_HEADS_REGISTRY:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, which is not registered in "
            "SEM_SEG_HEADS_REGISTRY; try 'FPNPixelDecoder', 'TransformerFPNPixelDecoder' or "
            "'DeformablePixelDecoder'"
        )
    missing = [f for f in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if f not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES asks for {missing}, but the backbone gives "
            f"{sorted(input_shape)}; set its OUT_FEATURES or IN_FEATURES"
        )
    return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
