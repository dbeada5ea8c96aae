"""MaskFormer's predictor."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...layers.transformer import Transformer
from .base import PREDICTOR_REGISTRY, QueryPredictor


@PREDICTOR_REGISTRY.register()
class TransformerPredictor(QueryPredictor):
    """MaskFormer's predictor: queries read a feature map, then each predicts a class and a mask."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        dropout: float = 0.1,
        feedforward_dim: int = 2048,
        encoder_layers: int = 0,
        decoder_layers: int = 6,
        pre_norm: bool = False,
        enforce_input_proj: bool = False,
        **options: Any,
    ):
        """
        Args:
            in_channels: channels of the feature map that the transformer reads.
            dropout, feedforward_dim, encoder_layers, decoder_layers, pre_norm: see
                :class:`Transformer`.
            enforce_input_proj: have a 1x1 input convolution also if ``in_channels`` equals
                ``hidden_dim``, so that none is needed.
            **options: see :class:`QueryPredictor`; ``num_classes`` is needed.
        """
        super().__init__(**options)
        self.transformer = Transformer(
            self.hidden_dim,
            num_heads=self.num_heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
            return_intermediate=self.deep_supervision,
        )
        self.query_embed = nn.Embedding(self.num_queries, self.hidden_dim)
        self.input_proj = self.input_projection(in_channels, enforce_input_proj)
        self.add_outputs()

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, *, mask_stride: int | None = None) -> dict:
        return {
            **super().from_config(cfg, in_channels, mask_stride=mask_stride),
            "encoder_layers": cfg.MODEL.MASK_FORMER.ENC_LAYERS,
            "decoder_layers": cfg.MODEL.MASK_FORMER.DEC_LAYERS,
        }

    def forward(self, features: Tensor, mask_features: Tensor) -> dict:
        """
        Args:
            features: (B, in_channels, h', w'), which the queries read.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            See :meth:`QueryPredictor.predict`. Evaluation predicts from the last layer only,
            because each layer costs Q * mask_dim * h * w multiplications and as much memory as the
            result.
        """
        position = self.position_embedding(features)
        queries = self.transformer(self.input_proj(features), position, self.query_embed.weight)
        if not self.training:
            queries = queries[-1:]
        return self.predict(queries, self.mask_embed(queries), mask_features)
