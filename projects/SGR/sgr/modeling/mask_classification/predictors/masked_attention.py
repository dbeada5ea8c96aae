"""Mask2Former's predictor: queries read one scale after the other, each inside of its own mask."""

from __future__ import annotations

from typing import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_at_least_one, check_heads
from ...layers.transformer import xavier_init
from ...reasoning.concept_regions import ConceptRegions
from ..position_embedding import SinePositionEmbedding
from .transformer import MLP, PREDICTOR_REGISTRY, collect_predictions, predictor_options

__all__ = ["MaskedAttention", "MaskedAttentionPredictor"]


class MaskedAttention(nn.MultiheadAttention):
    """Multi-head attention from queries to a memory, with one mask for all heads.

    Parameters are those of ``nn.MultiheadAttention``. Its own forward wants the mask once per head;
    here the heads share one of B * Q * N bytes.

    Args:
        embed_dim: D, channels of a token.
        num_heads: attention heads; must divide D.
        dropout: probability, of the attention's weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(embed_dim, num_heads, dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """
        Args:
            query: (B, Q, D).
            key, value: (B, N, D).
            allowed: (B, Q, N), bool: what each query may look at, at least one token.

        Returns:
            (B, Q, D).
        """
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
            )
        )
        read = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(read.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A residual with a norm: after the sum, or of the input (``pre_norm``)."""

    def __init__(self, embed_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, *context: Tensor) -> Tensor:
        if self.pre_norm:
            return queries + self.dropout(self._update(self.norm(queries), *context))
        return self.norm(queries + self.dropout(self._update(queries, *context)))

    def _update(self, queries: Tensor, *context: Tensor) -> Tensor:
        raise NotImplementedError


class _CrossAttentionBlock(_Block):
    """Queries (B, Q, D) read a memory of one scale."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool):
        super().__init__(embed_dim, dropout, pre_norm)
        self.multihead_attn = MaskedAttention(embed_dim, num_heads, dropout)

    def _update(
        self, queries: Tensor, position: Tensor, key: Tensor, value: Tensor, allowed: Tensor
    ) -> Tensor:
        return self.multihead_attn(queries + position, key, value, allowed)


class _SelfAttentionBlock(_Block):
    """Queries (B, Q, D) look at each other."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool):
        super().__init__(embed_dim, dropout, pre_norm)
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)

    def _update(self, queries: Tensor, position: Tensor) -> Tensor:
        at = queries + position
        return self.self_attn(at, at, queries, need_weights=False)[0]


class _FeedForwardBlock(_Block):
    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float, pre_norm: bool):
        super().__init__(embed_dim, dropout, pre_norm)
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)

    def _update(self, queries: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(queries))))


@PREDICTOR_REGISTRY.register()
class MaskedAttentionPredictor(nn.Module):
    """Mask2Former's transformer decoder (its Sec. 3.2): masked attention over several scales.

    Every layer lets the queries read one scale, the coarsest first and in turns: each query only
    the cells inside of the mask that it predicts before the layer, or all of them if there is none.
    Then the queries look at each other, and a feed-forward block follows.

    Q masks at the stride of the mask features cost Q * mask_dim * h * w multiplications, about as
    much as a whole layer. So they are made for results and losses only:

    * What a layer's queries may attend to is found without them. Bilinear resizing is linear, so
      the mask features are resized once per scale, and the queries multiplied with those cells.
    * Evaluation predicts once, from the last layer; training with deep supervision predicts from
      all of them, by one product.
    """

    # As for MaskFormer's: queries have their own set criterion.
    supervised_concepts = False
    reads_multi_scale = True

    @configurable
    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        dropout: float = 0.0,
        feedforward_dim: int = 2048,
        decoder_layers: int = 9,
        pre_norm: bool = False,
        deep_supervision: bool = True,
        mask_dim: int = 256,
        enforce_input_proj: bool = False,
        mask_stride: int | None = None,
    ):
        """
        Args:
            in_channels: channels of the feature maps that the queries read, one per scale, the
                coarsest first.
            num_classes: classes, "no object" not counted.
            hidden_dim: D, the transformer's width, a multiple of 4 and of ``num_heads``.
            num_queries: Q.
            num_heads, dropout, feedforward_dim, pre_norm: of the layers; ``pre_norm`` normalises
                each block's input instead of the sum after it.
            decoder_layers: layers, at least 1; one less than MODEL.MASK_FORMER.DEC_LAYERS, which
                counts the prediction before the first layer too. Where they are fewer than the
                scales, the finest scales are not read and have no input convolution.
            deep_supervision: in training, predict from every layer, and before the first.
            mask_dim: channels of the mask features.
            enforce_input_proj: keep the 1x1 input convolutions of scales that have ``hidden_dim``
                channels and need none.
            mask_stride: pixels per cell of the mask features; only for :meth:`concept_regions`.

        Raises:
            ValueError: no layer, no query, or heads that do not divide ``hidden_dim``.
        """
        super().__init__()
        check_at_least_one("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", num_queries)
        check_heads(
            num_heads, hidden_dim, "MODEL.MASK_FORMER.NHEADS", "MODEL.MASK_FORMER.HIDDEN_DIM"
        )
        if decoder_layers < 1:
            raise ValueError(
                f"masked attention needs at least 1 layer, got {decoder_layers}; "
                "MODEL.MASK_FORMER.DEC_LAYERS counts one more and must be at least 2"
            )
        self.mask_stride = mask_stride
        self.deep_supervision = deep_supervision
        self.position_embedding = SinePositionEmbedding(hidden_dim)
        self.transformer_cross_attention_layers = nn.ModuleList(
            _CrossAttentionBlock(hidden_dim, num_heads, dropout, pre_norm)
            for _ in range(decoder_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            _SelfAttentionBlock(hidden_dim, num_heads, dropout, pre_norm)
            for _ in range(decoder_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            _FeedForwardBlock(hidden_dim, feedforward_dim, dropout, pre_norm)
            for _ in range(decoder_layers)
        )
        for layers in (
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
        ):
            xavier_init(layers)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(len(in_channels), hidden_dim)
        self.input_proj = nn.ModuleList()
        for level, channels in enumerate(in_channels):
            # Parameters without a gradient would stop distributed training.
            is_read = level < decoder_layers
            if is_read and (channels != hidden_dim or enforce_input_proj):
                self.input_proj.append(Conv2d(channels, hidden_dim, kernel_size=1))
                weight_init.c2_xavier_fill(self.input_proj[-1])
            else:
                self.input_proj.append(nn.Identity())
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, num_layers=3)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: Sequence[int], *, mask_stride: int | None = None
    ) -> dict:
        return {
            **predictor_options(cfg),
            "in_channels": in_channels,
            "decoder_layers": cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1,
            "mask_stride": mask_stride,
        }

    def forward(self, features: Sequence[Tensor], mask_features: Tensor) -> dict:
        """
        Args:
            features: one map per scale, (B, in_channels[l], h_l, w_l), the coarsest first.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            A dict of ``pred_logits`` (B, Q, num_classes + 1), whose last class is "no object", and
            ``pred_masks`` (B, Q, h, w) logits. In training with deep supervision, ``aux_outputs``
            is a list of such dicts: the prediction before the first layer and those of the layers
            but the last, in order.

        Raises:
            ValueError: if there are not as many ``features`` as scales.
        """
        if len(features) != self.level_embed.num_embeddings:
            raise ValueError(
                f"masked attention reads {self.level_embed.num_embeddings} scales, but got "
                f"{len(features)} feature maps"
            )
        num_scales = len(features)
        features = features[: len(self.transformer_cross_attention_layers)]  # what is read of them
        memories = [self._memory(level, feature) for level, feature in enumerate(features)]
        resized = [_resize_cells(mask_features, feature.shape[-2:]) for feature in features]
        position = self.query_embed.weight[None]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        states = [self.decoder_norm(queries)]
        embeddings = [self.mask_embed(states[-1])]
        for number, (read, compare, transform) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
            )
        ):
            level = number % num_scales
            allowed = _inside_masks(embeddings[-1], resized[level])
            queries = read(queries, position, *memories[level], allowed)
            queries = transform(compare(queries, position))
            states.append(self.decoder_norm(queries))
            embeddings.append(self.mask_embed(states[-1]))
        if not (self.training and self.deep_supervision):
            states, embeddings = states[-1:], embeddings[-1:]
        masks = torch.einsum("lbqc,bchw->lbqhw", torch.stack(embeddings), mask_features)
        return collect_predictions(self.class_embed(torch.stack(states)), masks)

    def concept_regions(self, output: dict) -> ConceptRegions:
        """The queries' masks of :meth:`forward`'s output as regions of Q concepts."""
        return ConceptRegions(logits=output["pred_masks"], stride=self.mask_stride)

    def _memory(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h * w, D) of one scale, the same for all layers that read it."""
        value = self.input_proj[level](feature) + self.level_embed.weight[level][:, None, None]
        key = value + self.position_embedding(feature)
        return key.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # What the queries start from had another name in the first public checkpoints.
        old, new = f"{prefix}static_query.weight", f"{prefix}query_feat.weight"
        if old in state_dict:
            state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@torch.no_grad()
def _resize_cells(mask_features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) embeddings of the cells -> (B, C, h_l * w_l) of those of a scale."""
    return F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)


@torch.no_grad()
def _inside_masks(embeddings: Tensor, cells: Tensor) -> Tensor:
    """Which cells of a scale lie inside of which query's mask, that is, have p >= 0.5.

    Args:
        embeddings: (B, Q, C) mask embeddings of the queries.
        cells: (B, C, N) those of the scale's cells.

    Returns:
        (B, Q, N), bool; all of them True for a query whose mask is empty.
    """
    inside = embeddings @ cells >= 0
    return inside | ~inside.any(-1, keepdim=True)
