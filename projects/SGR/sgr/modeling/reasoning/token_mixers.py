"""Reasoning between tokens: a transformer encoder, or a graph convolution."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.checks import check_heads
from ..layers.transformer import xavier_init


class GraphConvolution(nn.Module):
    """Graph convolution with a learned, fully connected adjacency (Table 4, "w graph").

    A layer mixes the nodes by a learned K x K matrix added to the identity, then the channels, as
    the global reasoning unit of Chen et al. (CVPR 2019) does. A layer norm at the end gives the
    tokens the scale of a transformer's output, for sum and mean pooling alike.

    Args:
        num_tokens: K, the nodes.
        token_dim: D.
        num_layers: layers, each followed by a ReLU.

    Shape: (B, K, D) -> (B, K, D). Cost per layer: ``K * D * (K + D)`` multiply-adds per image.
    """

    def __init__(self, num_tokens: int, token_dim: int, num_layers: int):
        super().__init__()
        self.nodes = nn.ModuleList(
            nn.Conv1d(num_tokens, num_tokens, kernel_size=1) for _ in range(num_layers)
        )
        self.channels = nn.ModuleList(nn.Linear(token_dim, token_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        for nodes, channels in zip(self.nodes, self.channels):
            tokens = channels(tokens + nodes(tokens)).relu()
        return self.norm(tokens)


def build_token_mixer(
    name: str,
    *,
    num_tokens: int,
    token_dim: int,
    num_layers: int,
    num_heads: int,
    dim_feedforward: int,
    dropout: float,
) -> nn.Module:
    """Build a module (B, K, D) -> (B, K, D).

    Args:
        name: "transformer" (Sec. 3.2; post-norm, ReLU) or "graph" (Table 4). The graph does not
            use ``num_heads``, ``dim_feedforward`` and ``dropout``.
        num_tokens, token_dim: K and D.
        num_layers, num_heads, dim_feedforward, dropout: of the transformer encoder.

    Raises:
        ValueError: for another name, or if the heads do not divide the channels.
    """
    if name == "graph":
        return GraphConvolution(num_tokens, token_dim, num_layers)
    if name != "transformer":
        raise ValueError(f"unknown token mixer {name!r}; known: transformer, graph")
    check_heads(
        num_heads, token_dim, "num_heads (MODEL.SGR.NUM_HEADS)", "token_dim (MODEL.SGR.TOKEN_DIM)"
    )
    layer = nn.TransformerEncoderLayer(
        token_dim, num_heads, dim_feedforward, dropout, batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
    xavier_init(encoder)  # it starts with copies of one layer; the layers shall differ
    return encoder
