"""The registry of predictors, and what they have in common.

A predictor turns learned queries into pairs of a class and a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_at_least_one, check_heads, find_registered
from ...layers.conv import conv_norm
from ...reasoning.concept_regions import ConceptRegions
from ..decoders.base import MULTI_SCALE
from ..position_embedding import SinePositionEmbedding

PREDICTOR_REGISTRY = Registry("PREDICTOR")
PREDICTOR_REGISTRY.__doc__ = """
Predictors, chosen by ``cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``. A registered class is
called as ``(cfg, in_channels, mask_stride=...)``. Its modules are called with features and mask
features. A class with ``reads_multi_scale = True`` reads a list of features and gets a list of
channels; the others read one feature. :class:`QueryPredictor` may be the base, but need not be.
"""


def build_predictor(
    cfg: CfgNode, in_channels: int | Sequence[int], *, mask_stride: int | None = None
) -> nn.Module:
    """Build the predictor that ``cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` names.

    Args:
        in_channels: channels of the feature map that the queries read, or of the maps of several
            scales, the coarsest first.
        mask_stride: pixels per cell of the mask features.

    Raises:
        ValueError: no predictor is registered under that name, or the predictor cannot read
            ``cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE``.
    """
    predictor = find_registered(
        PREDICTOR_REGISTRY,
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME,
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    )
    check_reads(predictor, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE)
    return predictor(cfg, in_channels, mask_stride=mask_stride)


def check_reads(predictor: type[nn.Module], in_feature: str) -> None:
    """Raise a ValueError if a class of predictors cannot read what ``in_feature`` names."""
    reads_multi_scale = getattr(predictor, "reads_multi_scale", False)
    if reads_multi_scale != (in_feature == MULTI_SCALE):
        raise ValueError(
            f"{predictor.__name__} (MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME) reads "
            f"{repr(MULTI_SCALE) if reads_multi_scale else 'one feature map'}, but "
            f"transformer_in_feature (MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE) is {in_feature!r}"
        )


class QueryPredictor(nn.Module):
    """Base of the predictors. Subclasses read features with queries in :meth:`forward`.

    Attributes:
        reads_multi_scale: whether features are a list of maps of several scales.
        supervised_concepts: False, because queries have their own criterion. The metrics of tokens
            use their regions, but the criterion of concept regions does not.
        predicts_inner_layers: whether training mode predicts from inner layers too.
            ``tools/analyze_model.py`` counts these predictions separately.
    """

    reads_multi_scale = False
    supervised_concepts = False
    predicts_inner_layers = True

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        mask_dim: int = 256,
        deep_supervision: bool = True,
        mask_stride: int | None = None,
    ):
        """
        Args:
            num_classes: classes, "no object" not counted.
            num_queries: Q, at least 1.
            hidden_dim: D, channels of a query, a multiple of 4 and of ``num_heads``.
            num_heads: attention heads.
            mask_dim: channels of the mask features.
            deep_supervision: in training, predict from every layer instead of the last one only.
            mask_stride: pixels per cell of the mask features; only for :meth:`concept_regions`.

        Raises:
            ValueError: there is no query, or the heads do not divide ``hidden_dim``.
        """
        super().__init__()
        check_at_least_one("num_queries (MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)", num_queries)
        check_heads(
            num_heads,
            hidden_dim,
            "num_heads, MODEL.MASK_FORMER.NHEADS",
            "hidden_dim, MODEL.MASK_FORMER.HIDDEN_DIM",
        )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.mask_dim = mask_dim
        self.deep_supervision = deep_supervision
        self.mask_stride = mask_stride
        self.position_embedding = SinePositionEmbedding(hidden_dim)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int | Sequence[int], *, mask_stride: int | None = None
    ) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_queries": options.NUM_OBJECT_QUERIES,
            "hidden_dim": options.HIDDEN_DIM,
            "num_heads": options.NHEADS,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "deep_supervision": options.DEEP_SUPERVISION,
            "mask_stride": mask_stride,
            "dropout": options.DROPOUT,
            "feedforward_dim": options.DIM_FEEDFORWARD,
            "pre_norm": options.PRE_NORM,
            "enforce_input_proj": options.ENFORCE_INPUT_PROJ,
        }

    def input_projection(self, channels: int, enforce: bool) -> nn.Module:
        """Build a 1x1 convolution to D channels; the identity if not needed and not enforced."""
        if channels == self.hidden_dim and not enforce:
            return nn.Identity()
        return conv_norm(channels, self.hidden_dim, 1, norm="")

    def add_outputs(self) -> None:
        """Add ``class_embed`` and ``mask_embed``.

        Subclasses call it last: random weights are drawn in the order in which parts are made.
        """
        self.class_embed = nn.Linear(self.hidden_dim, self.num_classes + 1)
        self.mask_embed = MLP(self.hidden_dim, self.hidden_dim, self.mask_dim, num_layers=3)

    def predict(self, queries: Tensor, mask_embeddings: Tensor, mask_features: Tensor) -> dict:
        """Predict classes and masks from the queries of L layers.

        Args:
            queries: (L, B, Q, D).
            mask_embeddings: (L, B, Q, mask_dim), ``mask_embed`` of the queries.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            A dict of the last layer's ``pred_logits`` (B, Q, num_classes + 1), whose last class is
            "no object", and ``pred_masks`` (B, Q, h, w) logits. If L is more than 1,
            ``aux_outputs`` is a list of such dicts of the layers before it, in order. In training
            there are the factors of the masks, too: each layer's ``mask_embeddings``, and
            ``mask_features``.
        """
        masks = torch.einsum("lbqc,bchw->lbqhw", mask_embeddings, mask_features)
        *inner, output = [
            {"pred_logits": layer_logits, "pred_masks": layer_masks}
            for layer_logits, layer_masks in zip(self.class_embed(queries), masks)
        ]
        if self.training:
            for layer, embeddings in zip((*inner, output), mask_embeddings):
                layer["mask_embeddings"] = embeddings
            output["mask_features"] = mask_features
        return {**output, "aux_outputs": inner} if inner else output

    def concept_regions(self, output: dict) -> ConceptRegions:
        """Give the masks in an output of :meth:`forward` as regions of Q concepts."""
        return ConceptRegions(logits=output["pred_masks"], stride=self.mask_stride)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

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
