"""MaskFormer's pixel decoders: from features of several strides to an embedding of each cell.

Parameter names are those of MaskFormer's pixel decoders, so that its checkpoints load.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_heads
from ...layers.conv import conv_norm
from ...layers.transformer import TransformerEncoderOnly
from ..position_embedding import SinePositionEmbedding
from .base import PixelDecoderOutput, PyramidDecoder


@SEM_SEG_HEADS_REGISTRY.register()
class FPNPixelDecoder(PyramidDecoder):
    """Top-down feature pyramid (FPN) that ends in a 3x3 convolution to the mask features."""

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
            norm: norm of the pyramid's convolutions (see Detectron2's ``get_norm``); "" leaves it
                out.

        Raises:
            ValueError: there is no input feature.
        """
        super().__init__()
        if not input_shape:
            raise ValueError("a pixel decoder needs at least one input feature")
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in by_stride]
        self.conv_dim = conv_dim
        self.mask_stride = by_stride[0][1].stride
        self.output_channels = {"pixel_embedding": mask_dim}
        self.add_levels([shape for _, shape in by_stride[:-1]], conv_dim, norm)
        coarsest = self._build_coarsest(by_stride[-1][1], norm)
        self.add_module(f"layer_{len(by_stride)}", coarsest)
        self.mask_features = conv_norm(conv_dim, mask_dim, 3, norm="")

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
        """``features`` are at least those of ``input_shape``, each (B, C_i, h_i, w_i)."""
        maps, encoder_features = self.decode(features)
        return PixelDecoderOutput(self.mask_features(maps[-1]), encoder_features)

    def decode(self, features: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The maps of the pyramid, the coarsest first, and the encoder's output or None."""
        *finer, coarsest = [features[name] for name in self.in_features]
        y, encoder_features = self._encode_coarsest(coarsest)
        y = getattr(self, f"layer_{len(self.in_features)}")(y)
        return self.descend(y, finer), encoder_features

    def _build_coarsest(self, shape: ShapeSpec, norm: str) -> nn.Module:
        """Build the convolution between the coarsest feature and the pyramid."""
        return conv_norm(shape.channels, self.conv_dim, 3, norm, F.relu)

    def _encode_coarsest(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give what enters the pyramid at the coarsest stride, and the encoder's output or None."""
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
            input_shape, conv_dim, mask_dim, norm: as for :class:`FPNPixelDecoder`. ``conv_dim`` is
                also the width of the encoder, a multiple of 4 and of ``num_heads``.
            num_layers, num_heads, feedforward_dim, dropout, pre_norm: of the encoder.

        Raises:
            ValueError: the heads do not divide ``conv_dim``.
        """
        check_heads(
            num_heads,
            conv_dim,
            "num_heads, MODEL.MASK_FORMER.NHEADS",
            "conv_dim, MODEL.SEM_SEG_HEAD.CONVS_DIM",
        )
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.output_channels["transformer_encoder"] = conv_dim
        coarsest = max(input_shape.values(), key=lambda shape: shape.stride)
        self.input_proj = conv_norm(coarsest.channels, conv_dim, 1, norm="")
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
        return conv_norm(self.conv_dim, self.conv_dim, 3, norm, F.relu)

    def _encode_coarsest(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        projected = self.input_proj(feature)
        encoded = self.transformer(projected, self.position_embedding(projected))
        return encoded, encoded
