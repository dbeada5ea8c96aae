"""The transformer that turns learned queries into pairs of a class and a mask."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..reasoning.concept_regions import ConceptRegions
from .position_embedding import SinePositionEmbedding
from .transformer import Transformer

__all__ = ["MLP", "TransformerPredictor"]


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim, hidden_dim, output_dim: channels.
        num_layers: linear layers, at least 1.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:])
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class TransformerPredictor(nn.Module):
    """MaskFormer's predictor: queries read a feature map, then each names a class and a mask."""

    # Its regions are recorded as tokens for the metrics, but the criterion of the concept regions
    # leaves them alone: queries have their own set criterion.
    supervised_concepts = False

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        dropout: float = 0.1,
        feedforward_dim: int = 2048,
        encoder_layers: int = 0,
        decoder_layers: int = 6,
        pre_norm: bool = False,
        deep_supervision: bool = True,
        mask_dim: int = 256,
        enforce_input_proj: bool = False,
        mask_stride: int | None = None,
    ):
        """
        Args:
            in_channels: channels of the feature map that the transformer reads.
            num_classes: classes, "no object" not counted.
            hidden_dim: the transformer's width, a multiple of 4 and of ``num_heads``.
            num_queries: Q.
            num_heads, dropout, feedforward_dim, encoder_layers, decoder_layers, pre_norm: the
                transformer's.
            deep_supervision: predict from every decoder layer, not only from the last one.
            mask_dim: channels of the mask features.
            enforce_input_proj: keep the 1x1 input convolution where ``in_channels`` equals
                ``hidden_dim`` and none is needed.
            mask_stride: pixels per cell of the mask features; only for :meth:`concept_regions`.
        """
        super().__init__()
        self.mask_stride = mask_stride
        self.position_embedding = SinePositionEmbedding(hidden_dim)
        self.transformer = Transformer(
            hidden_dim,
            num_heads=num_heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
            return_intermediate=deep_supervision,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        if in_channels != hidden_dim or enforce_input_proj:
            self.input_proj = Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        else:
            self.input_proj = nn.Identity()
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, num_layers=3)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, *, mask_stride: int | None = None
    ) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": options.HIDDEN_DIM,
            "num_queries": options.NUM_OBJECT_QUERIES,
            "num_heads": options.NHEADS,
            "dropout": options.DROPOUT,
            "feedforward_dim": options.DIM_FEEDFORWARD,
            "encoder_layers": options.ENC_LAYERS,
            "decoder_layers": options.DEC_LAYERS,
            "pre_norm": options.PRE_NORM,
            "deep_supervision": options.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_proj": options.ENFORCE_INPUT_PROJ,
            "mask_stride": mask_stride,
        }

    def forward(self, features: Tensor, mask_features: Tensor) -> dict:
        """
        Args:
            features: (B, in_channels, h', w') what the queries read.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            A dict of ``pred_logits`` (B, Q, num_classes + 1), whose last class is "no object", and
            ``pred_masks`` (B, Q, h, w) logits. With deep supervision and more than one decoder
            layer, ``aux_outputs`` is a list of such dicts, of the layers but the last in order.
        """
        position = self.position_embedding(features)
        queries = self.transformer(self.input_proj(features), position, self.query_embed.weight)
        logits = self.class_embed(queries)
        masks = torch.einsum("lbqc,bchw->lbqhw", self.mask_embed(queries), mask_features)
        layers = [
            {"pred_logits": layer_logits, "pred_masks": layer_masks}
            for layer_logits, layer_masks in zip(logits, masks)
        ]
        output = layers.pop()
        if layers:
            output["aux_outputs"] = layers
        return output

    def concept_regions(self, output: dict) -> ConceptRegions:
        """The queries' masks of :meth:`forward`'s output as regions of Q concepts."""
        return ConceptRegions(logits=output["pred_masks"], stride=self.mask_stride)
