"""Predictors turn learned queries into pairs of a class and a mask; MaskFormer's is here."""

from __future__ import annotations

from typing import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_at_least_one, check_heads
from ...layers.transformer import Transformer
from ...reasoning.concept_regions import ConceptRegions
from ..decoders.fpn import MULTI_SCALE
from ..position_embedding import SinePositionEmbedding

__all__ = [
    "MLP",
    "PREDICTOR_REGISTRY",
    "TransformerPredictor",
    "build_predictor",
    "check_reads",
    "collect_predictions",
    "predictor_options",
]

PREDICTOR_REGISTRY = Registry("PREDICTOR")
PREDICTOR_REGISTRY.__doc__ = """
Predictors, chosen by ``cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``. They are built as
``Predictor(cfg, in_channels, mask_stride=...)`` and called with features and mask features. Those
with ``reads_multi_scale = True`` read a list of features, of a list of channels; the others one.
"""


def build_predictor(
    cfg: CfgNode, in_channels: int | Sequence[int], *, mask_stride: int | None = None
) -> nn.Module:
    """Build the predictor that ``cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` names.

    Args:
        cfg: a config.
        in_channels: channels of the feature map that the queries read, or of the maps of several
            scales, the coarsest first.
        mask_stride: pixels per cell of the mask features.

    Raises:
        ValueError: if no predictor is registered under that name, or if it reads several scales and
            gets one, or the other way round.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    if name not in PREDICTOR_REGISTRY:
        known = ", ".join(sorted(key for key, _ in PREDICTOR_REGISTRY))
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME is {name!r}; registered predictors: "
            f"{known}"
        )
    predictor = PREDICTOR_REGISTRY.get(name)
    check_reads(predictor, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE)
    return predictor(cfg, in_channels, mask_stride=mask_stride)


def check_reads(predictor: type[nn.Module], in_feature: str) -> None:
    """Raise a ValueError if a class of predictors cannot read what ``in_feature`` names."""
    reads_multi_scale = getattr(predictor, "reads_multi_scale", False)
    if reads_multi_scale != (in_feature == MULTI_SCALE):
        raise ValueError(
            f"{predictor.__name__} (MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME) reads "
            f"{repr(MULTI_SCALE) if reads_multi_scale else 'one feature map'}, but "
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}"
        )


def predictor_options(cfg: CfgNode) -> dict:
    """The arguments that all predictors take from a config alike."""
    options = cfg.MODEL.MASK_FORMER
    return {
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "hidden_dim": options.HIDDEN_DIM,
        "num_queries": options.NUM_OBJECT_QUERIES,
        "num_heads": options.NHEADS,
        "dropout": options.DROPOUT,
        "feedforward_dim": options.DIM_FEEDFORWARD,
        "pre_norm": options.PRE_NORM,
        "deep_supervision": options.DEEP_SUPERVISION,
        "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        "enforce_input_proj": options.ENFORCE_INPUT_PROJ,
    }


def collect_predictions(logits: Tensor, masks: Tensor) -> dict:
    """What a predictor puts out, from (L, B, Q, classes + 1) and (L, B, Q, h, w) of L layers.

    Returns:
        The last layer's ``pred_logits`` and ``pred_masks``, and, of the layers before it, in order,
        ``aux_outputs``: a list of such dicts, left out where it would be empty.
    """
    layers = [
        {"pred_logits": layer_logits, "pred_masks": layer_masks}
        for layer_logits, layer_masks in zip(logits, masks)
    ]
    output = layers.pop()
    if layers:
        output["aux_outputs"] = layers
    return output


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


@PREDICTOR_REGISTRY.register()
class TransformerPredictor(nn.Module):
    """MaskFormer's predictor: queries read a feature map, then each names a class and a mask."""

    reads_multi_scale = False

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
            deep_supervision: in training, predict from every decoder layer, not only from the last
                one.
            mask_dim: channels of the mask features.
            enforce_input_proj: keep the 1x1 input convolution where ``in_channels`` equals
                ``hidden_dim`` and none is needed.
            mask_stride: pixels per cell of the mask features; only for :meth:`concept_regions`.

        Raises:
            ValueError: no query, or heads that do not divide ``hidden_dim``.
        """
        super().__init__()
        check_at_least_one("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", num_queries)
        check_heads(
            num_heads, hidden_dim, "MODEL.MASK_FORMER.NHEADS", "MODEL.MASK_FORMER.HIDDEN_DIM"
        )
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
    def from_config(cls, cfg: CfgNode, in_channels: int, *, mask_stride: int | None = None) -> dict:
        return {
            **predictor_options(cfg),
            "in_channels": in_channels,
            "encoder_layers": cfg.MODEL.MASK_FORMER.ENC_LAYERS,
            "decoder_layers": cfg.MODEL.MASK_FORMER.DEC_LAYERS,
            "mask_stride": mask_stride,
        }

    def forward(self, features: Tensor, mask_features: Tensor) -> dict:
        """
        Args:
            features: (B, in_channels, h', w') what the queries read.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            A dict of ``pred_logits`` (B, Q, num_classes + 1), whose last class is "no object", and
            ``pred_masks`` (B, Q, h, w) logits. In training with deep supervision and more than one
            decoder layer, ``aux_outputs`` is a list of such dicts, of the layers but the last in
            order. Evaluation leaves them out: each costs Q * mask_dim * h * w multiplications, and
            as much memory as the result.
        """
        position = self.position_embedding(features)
        queries = self.transformer(self.input_proj(features), position, self.query_embed.weight)
        if not self.training:
            queries = queries[-1:]
        masks = torch.einsum("lbqc,bchw->lbqhw", self.mask_embed(queries), mask_features)
        return collect_predictions(self.class_embed(queries), masks)

    def concept_regions(self, output: dict) -> ConceptRegions:
        """The queries' masks of :meth:`forward`'s output as regions of Q concepts."""
        return ConceptRegions(logits=output["pred_masks"], stride=self.mask_stride)
