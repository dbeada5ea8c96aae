"""Mask2Former's predictor: queries read one scale after another, each inside its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.transformer import xavier_init
from .base import PREDICTOR_REGISTRY, QueryPredictor


class MaskedAttention(nn.MultiheadAttention):
    """Multi-head attention from queries to a memory, with one mask for all heads.

    It has the parameters of ``nn.MultiheadAttention``, whose own forward needs one mask per head.
    Here all heads share one mask of B * Q * N bytes.

    Args:
        embed_dim: D, channels of a token.
        num_heads: attention heads, a divisor of D.
        dropout: probability, of the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(embed_dim, num_heads, dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """
        Args:
            query: (B, Q, D).
            key, value: (B, N, D).
            allowed: (B, Q, N), bool: the tokens that each query may read, at least one.

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
    """A residual block with a norm of the sum or, with ``pre_norm``, of the input."""

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
    """Queries (B, Q, D) read each other."""

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
class MaskedAttentionPredictor(QueryPredictor):
    """Mask2Former's transformer decoder (its Sec. 3.2): masked attention over several scales.

    In every layer the queries read one scale: the coarsest in the first layer, then the next finer
    one, and after the finest the coarsest again. Each query reads only the cells inside the mask
    that it predicts before the layer, or all cells if that mask is empty. Then the queries read
    each other, and a feed-forward block follows.

    Q masks at the stride of the mask features cost Q * mask_dim * h * w multiplications, about as
    much as a whole layer. So they are made for results and losses only:

    * The cells that a query may read are found without them. Bilinear resizing is linear, so the
      mask features are resized once per scale and multiplied with the queries.
    * Evaluation predicts once, from the last layer. Training with deep supervision predicts from
      all layers with one product.
    """

    reads_multi_scale = True

    @configurable
    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        dropout: float = 0.0,
        feedforward_dim: int = 2048,
        decoder_layers: int = 9,
        pre_norm: bool = False,
        enforce_input_proj: bool = False,
        **options: Any,
    ):
        """
        Args:
            in_channels: channels of the feature maps that the queries read, one per scale, the
                coarsest first.
            dropout, feedforward_dim: of the layers.
            decoder_layers: layers, at least 1. MODEL.MASK_FORMER.DEC_LAYERS is one more, because
                it counts the prediction before the first layer. If there are fewer layers than
                scales, the finest scales are not read and have no input convolution.
            pre_norm: normalise each block's input instead of the sum after it.
            enforce_input_proj: have 1x1 input convolutions also for scales that have ``hidden_dim``
                channels, so that none is needed.
            **options: see :class:`QueryPredictor`; ``num_classes`` is needed.

        Raises:
            ValueError: there is no layer; see :class:`QueryPredictor` for others.
        """
        super().__init__(**options)
        hidden_dim, num_heads = self.hidden_dim, self.num_heads
        if decoder_layers < 1:
            raise ValueError(
                f"decoder_layers must be at least 1 layer, got {decoder_layers}; "
                "MODEL.MASK_FORMER.DEC_LAYERS counts one more and must be at least 2"
            )
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
        self.query_feat = nn.Embedding(self.num_queries, hidden_dim)
        self.query_embed = nn.Embedding(self.num_queries, hidden_dim)
        self.level_embed = nn.Embedding(len(in_channels), hidden_dim)
        self.input_proj = nn.ModuleList()
        for level, channels in enumerate(in_channels):
            # Parameters without a gradient would stop distributed training.
            is_read = level < decoder_layers
            self.input_proj.append(
                self.input_projection(channels, enforce_input_proj) if is_read else nn.Identity()
            )
        self.add_outputs()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: Sequence[int], *, mask_stride: int | None = None
    ) -> dict:
        return {
            **super().from_config(cfg, in_channels, mask_stride=mask_stride),
            "decoder_layers": cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1,
        }

    def forward(self, features: Sequence[Tensor], mask_features: Tensor) -> dict:
        """
        Args:
            features: one map per scale, (B, in_channels[l], h_l, w_l), the coarsest first.
            mask_features: (B, mask_dim, h, w) embeddings of the cells.

        Returns:
            See :meth:`QueryPredictor.predict`. In training with deep supervision ``aux_outputs``
            begins with the prediction before the first layer. Otherwise there are none.

        Raises:
            ValueError: there are not as many ``features`` as scales.
        """
        if len(features) != self.level_embed.num_embeddings:
            raise ValueError(
                f"masked attention reads {self.level_embed.num_embeddings} scales, but got "
                f"{len(features)} feature maps"
            )
        num_scales = len(features)
        # With fewer layers than scales nothing reads the finest ones.
        features = features[: len(self.transformer_cross_attention_layers)]
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
        return self.predict(torch.stack(states), torch.stack(embeddings), mask_features)

    def _memory(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Make (B, h * w, D) keys and values of one scale, for all layers that read it."""
        value = self.input_proj[level](feature) + self.level_embed.weight[level][:, None, None]
        key = value + self.position_embedding(feature)
        return key.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # The first public checkpoints have another name for the first state of the queries.
        old, new = f"{prefix}static_query.weight", f"{prefix}query_feat.weight"
        if old in state_dict:
            state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@torch.no_grad()
def _resize_cells(mask_features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) embeddings of the cells to the (B, C, h_l * w_l) cells of a scale."""
    return F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)


@torch.no_grad()
def _inside_masks(embeddings: Tensor, cells: Tensor) -> Tensor:
    """(B, Q, N): the cells inside each query's mask, or all cells if the mask is empty."""
    inside = embeddings @ cells >= 0
    return inside | ~inside.any(-1, keepdim=True)
