"""Transformer encoder and decoder whose attention sees position embeddings in every layer.

In contrast to ``torch.nn.Transformer``, positions are added to queries and keys, but never to
values. So they guide attention but do not enter the features. Parameter names are those of DETR and
MaskFormer. Token sequences are batch first: (B, N, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Layer(nn.Module):
    """What layers of the encoder and of the decoder have in common."""

    reads_memory = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        if self.reads_memory:
            self.multihead_attn = nn.MultiheadAttention(
                embed_dim, num_heads, dropout, batch_first=True
            )
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        if self.reads_memory:
            self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _attend_self(self, tokens: Tensor, position: Tensor) -> Tensor:
        at = tokens + position
        return self.dropout(self.self_attn(at, at, tokens, need_weights=False)[0])

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.dropout(self.linear2(hidden))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward block, each with a residual.

    Args:
        embed_dim: D, channels of a token.
        num_heads: attention heads, a divisor of D.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in attention and before each residual sum.
        pre_norm: normalise each block's input instead of the sum after it.
    """

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D); ``position`` (B or 1, N, D) is added to queries and keys."""
        if self.pre_norm:
            tokens = tokens + self._attend_self(self.norm1(tokens), position)
            return tokens + self._feed_forward(self.norm2(tokens))
        tokens = self.norm1(tokens + self._attend_self(tokens, position))
        return self.norm2(tokens + self._feed_forward(tokens))


class TransformerDecoderLayer(_Layer):
    """Self-attention between queries, attention to the memory, and a feed-forward block.

    Args: as for :class:`TransformerEncoderLayer`.
    """

    reads_memory = True

    def forward(
        self, queries: Tensor, memory: Tensor, query_position: Tensor, memory_key: Tensor
    ) -> Tensor:
        """
        Args:
            queries: (B, Q, D).
            memory: (B, N, D) what the queries read.
            query_position: (B or 1, Q, D) embedding added to the queries in both attentions.
            memory_key: (B, N, D) sum of the memory and its position embedding. It is the same for
                all layers, so the caller computes it once.

        Returns:
            (B, Q, D).
        """
        if self.pre_norm:
            queries = queries + self._attend_self(self.norm1(queries), query_position)
            queries = queries + self._attend_memory(
                self.norm2(queries), memory, query_position, memory_key
            )
            return queries + self._feed_forward(self.norm3(queries))
        queries = self.norm1(queries + self._attend_self(queries, query_position))
        queries = self.norm2(
            queries + self._attend_memory(queries, memory, query_position, memory_key)
        )
        return self.norm3(queries + self._feed_forward(queries))

    def _attend_memory(
        self, queries: Tensor, memory: Tensor, position: Tensor, memory_key: Tensor
    ) -> Tensor:
        read = self.multihead_attn(queries + position, memory_key, memory, need_weights=False)[0]
        return self.dropout(read)


class TransformerEncoder(nn.Module):
    """A stack of :class:`TransformerEncoderLayer`. Without layers it is the identity.

    Args:
        pre_norm: as for the layers; it also adds a norm after the last layer.
        embed_dim, layer_options: passed to every layer.
    """

    def __init__(self, num_layers: int, embed_dim: int, *, pre_norm: bool = False, **layer_options):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(embed_dim, pre_norm=pre_norm, **layer_options)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else None

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(B, N, D) tokens and their (B or 1, N, D) positions -> (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens if self.norm is None else self.norm(tokens)


class TransformerDecoder(nn.Module):
    """A stack of :class:`TransformerDecoderLayer` with a shared output norm.

    Args:
        num_layers: layers, at least 1.
        return_intermediate: return the outputs of all layers, not only of the last one.
        embed_dim, layer_options: passed to every layer.
    """

    def __init__(
        self, num_layers: int, embed_dim: int, *, return_intermediate: bool = False, **layer_options
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"a decoder needs at least 1 layer, got {num_layers}")
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(embed_dim, **layer_options) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.return_intermediate = return_intermediate

    def forward(
        self, queries: Tensor, memory: Tensor, query_position: Tensor, memory_position: Tensor
    ) -> Tensor:
        """
        Args:
            queries: (B, Q, D).
            memory: (B, N, D).
            query_position, memory_position: (B or 1, Q, D) and (B or 1, N, D) embeddings.

        Returns:
            (layers, B, Q, D) normalised outputs, of one layer without ``return_intermediate``.
        """
        memory_key = memory + memory_position
        outputs = []
        for layer in self.layers:
            queries = layer(queries, memory, query_position, memory_key)
            outputs.append(queries)
        if not self.return_intermediate:
            outputs = outputs[-1:]
        return self.norm(torch.stack(outputs))


class TransformerEncoderOnly(nn.Module):
    """A transformer encoder over the cells of a feature map.

    Args: as for :class:`TransformerEncoder`.
    """

    def __init__(self, num_layers: int, embed_dim: int, **options):
        super().__init__()
        self.encoder = TransformerEncoder(num_layers, embed_dim, **options)
        xavier_init(self)

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """(B, D, h, w) features and their (B or 1, D, h, w) positions -> (B, D, h, w)."""
        tokens = self.encoder(_to_tokens(features), _to_tokens(position))
        return tokens.transpose(1, 2).unflatten(2, features.shape[-2:])


class Transformer(nn.Module):
    """An encoder of a feature map, and a decoder with learned queries that read the map.

    Args:
        embed_dim: D, channels of tokens and queries.
        num_heads, feedforward_dim, dropout, pre_norm: as for :class:`TransformerEncoderLayer`.
        encoder_layers, decoder_layers: layers of each; the encoder may have none.
        return_intermediate: return the outputs of all decoder layers.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int = 8,
        encoder_layers: int = 0,
        decoder_layers: int = 6,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        return_intermediate: bool = False,
    ):
        super().__init__()
        layer_options: dict[str, Any] = {
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.encoder = TransformerEncoder(encoder_layers, embed_dim, **layer_options)
        self.decoder = TransformerDecoder(
            decoder_layers, embed_dim, return_intermediate=return_intermediate, **layer_options
        )
        xavier_init(self)

    def forward(self, features: Tensor, position: Tensor, query_position: Tensor) -> Tensor:
        """
        Args:
            features: (B, D, h, w).
            position: (B or 1, D, h, w) embedding of the cells.
            query_position: (Q, D) learned embedding of the queries. The queries start at zero.

        Returns:
            (layers, B, Q, D) queries after each decoder layer, or only after the last one without
            ``return_intermediate``.
        """
        position = _to_tokens(position)
        memory = self.encoder(_to_tokens(features), position)
        queries = memory.new_zeros(memory.shape[0], *query_position.shape)
        return self.decoder(queries, memory, query_position[None], position)


def _to_tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def xavier_init(module: nn.Module) -> None:
    """Draw every matrix of ``module`` again by Xavier's uniform rule. Vectors do not change."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
