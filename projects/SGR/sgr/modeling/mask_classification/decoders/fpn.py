"""Pixel decoders: from a backbone's feature pyramid to one embedding per cell at its finest stride.

Parameter names are those of MaskFormer's pixel decoders, so that its checkpoints load.
"""

from __future__ import annotations

from typing import NamedTuple

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_heads
from ...layers.transformer import TransformerEncoderOnly
from ..position_embedding import SinePositionEmbedding

__all__ = [
    "MULTI_SCALE",
    "FPNPixelDecoder",
    "PixelDecoderOutput",
    "TransformerFPNPixelDecoder",
    "build_pixel_decoder",
    "conv",
]


# The name of PixelDecoderOutput.multi_scale_features where a predictor may choose what it reads.
MULTI_SCALE = "multi_scale_pixel_decoder"


class PixelDecoderOutput(NamedTuple):
    """What a pixel decoder makes of a feature pyramid.

    Attributes:
        mask_features: (B, mask_dim, h, w) embeddings, at the stride of the finest input feature.
        encoder_features: (B, conv_dim, h', w') output of the transformer encoder at the coarsest
            stride, or None where there is no encoder.
        multi_scale_features: (B, conv_dim, h_l, w_l) maps of several strides, the coarsest first,
            or None where the decoder makes none.
    """

    mask_features: Tensor
    encoder_features: Tensor | None = None
    multi_scale_features: list[Tensor] | None = None


@SEM_SEG_HEADS_REGISTRY.register()
class FPNPixelDecoder(nn.Module):
    """Top-down feature pyramid (FPN) that ends in a 3x3 convolution to the mask features.

    Attributes:
        mask_stride: pixels per cell of the mask features.
        output_channels: what a predictor may read besides the backbone's features, by its name in
            ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE`` -> channels.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
    ):
        """
        Args:
            input_shape: channels and stride of every input feature.
            conv_dim: channels of the pyramid.
            mask_dim: channels of the mask features.
            norm: normalisation of the pyramid's convolutions (see detectron2's ``get_norm``); an
                empty string leaves it out.
        """
        super().__init__()
        if not input_shape:
            raise ValueError("a pixel decoder needs at least one input feature")
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in by_stride]
        self.conv_dim = conv_dim
        self.mask_stride = by_stride[0][1].stride
        self.output_channels = {"pixel_embedding": mask_dim}
        # Public checkpoints number the stages from 1 at the finest stride.
        for stage, (_, shape) in enumerate(by_stride[:-1], 1):
            self.add_module(f"adapter_{stage}", conv(shape.channels, conv_dim, 1, norm))
            self.add_module(f"layer_{stage}", conv(conv_dim, conv_dim, 3, norm, F.relu))
        coarsest = self._build_coarsest(by_stride[-1][1], norm)
        self.add_module(f"layer_{len(by_stride)}", coarsest)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """
        Args:
            features: at least the features of ``input_shape``, each (B, C_i, h_i, w_i).
        """
        coarsest, encoder_features = self._encode_coarsest(features[self.in_features[-1]])
        y = getattr(self, f"layer_{len(self.in_features)}")(coarsest)
        for stage in range(len(self.in_features) - 1, 0, -1):
            lateral = getattr(self, f"adapter_{stage}")(features[self.in_features[stage - 1]])
            y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = getattr(self, f"layer_{stage}")(y)
        return PixelDecoderOutput(self.mask_features(y), encoder_features)

    def _build_coarsest(self, shape: ShapeSpec, norm: str) -> nn.Module:
        """The convolution that the coarsest feature passes on its way into the pyramid."""
        return conv(shape.channels, self.conv_dim, 3, norm, F.relu)

    def _encode_coarsest(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """What enters the pyramid at the coarsest stride, and the encoder's output if any."""
        return feature, None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerFPNPixelDecoder(FPNPixelDecoder):
    """The same pyramid, with a transformer encoder on the coarsest feature (as in DETR)."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        """
        Args:
            input_shape, conv_dim, mask_dim, norm: as for :class:`FPNPixelDecoder`; ``conv_dim``
                is also the encoder's width, a multiple of 4 and of ``num_heads``.
            num_layers, num_heads, feedforward_dim, dropout, pre_norm: the encoder's.

        Raises:
            ValueError: heads that do not divide ``conv_dim``.
        """
        check_heads(num_heads, conv_dim, "MODEL.MASK_FORMER.NHEADS", "MODEL.SEM_SEG_HEAD.CONVS_DIM")
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.output_channels["transformer_encoder"] = conv_dim
        coarsest = max(input_shape.values(), key=lambda shape: shape.stride)
        self.input_proj = Conv2d(coarsest.channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = TransformerEncoderOnly(
            num_layers,
            conv_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.position_embedding = SinePositionEmbedding(conv_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "num_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "num_heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "feedforward_dim": cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "pre_norm": cfg.MODEL.MASK_FORMER.PRE_NORM,
        }

    def _build_coarsest(self, shape: ShapeSpec, norm: str) -> nn.Module:
        return conv(self.conv_dim, self.conv_dim, 3, norm, F.relu)

    def _encode_coarsest(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        projected = self.input_proj(feature)
        encoded = self.transformer(projected, self.position_embedding(projected))
        return encoded, encoded


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the pixel decoder that ``cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names.

    Args:
        cfg: a config.
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


def conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, activation=None
) -> Conv2d:
    """A pyramid's convolution, with a bias where there is no norm."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(layer)
    return layer
