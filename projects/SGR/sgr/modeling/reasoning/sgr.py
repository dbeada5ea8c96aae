"""Semantically-aware global reasoning: pixels -> tokens -> reasoning -> pixels (Sec. 3.1, 3.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_at_least_one
from ..layers.precision import at_least_float32, float32_or_wider
from .build import REASONING_REGISTRY, ReasoningModule, batch_norm_of_update
from .concept_regions import ConceptRegions
from .position_encoding import sine_encoding
from .token_mixers import build_token_mixer

TOKEN_POOLINGS = ("sum", "mean")
# Smallest mass of a region, in cells, that centroids and mean pooling divide by. The backward pass
# divides by its square, which would overflow for a smaller one.
MASS_FLOOR = 1e-6


@REASONING_REGISTRY.register()
class SemanticGlobalReasoning(ReasoningModule):
    """Group the cells of a feature map into K tokens, reason between them, and add the result.

    The paper convolves ``X' = [X + PE(x); X + PE(y)]`` (2C channels, Eq. 1) twice with 1x1
    kernels, for the concept regions (Eq. 2) and for the features that are pooled (Eq. 3). Here the
    parameters are the same and X' is never built: for a kernel ``W = [W1 W2]``,

        W X' = (W1 + W2) X + W1 PE(x) + W2 PE(y),

    one convolution on C channels for both, plus two tables of one row and one column. The paper's
    steps, one by one, are in tools/benchmarks/module.py.

    Args:
        in_channels: C, even.
        num_concepts: K.
        token_dim: D, a multiple of 4 (half of it encodes x, half y, each in sines and cosines)
            and, for the transformer, of ``num_heads``.
        num_heads, num_layers, dim_feedforward, dropout: of the token mixer.
        token_mixer: "transformer" (Sec. 3.2) or "graph" (Table 4).
        token_pooling: "sum" over the cells as Eq. 3 has it, or "mean", which divides by the
            region's mass. So tokens keep the scale of the features.
        token_norm: a layer norm of the tokens before the mixer, so that the first attention does
            not go to the largest regions alone. The paper has none.
        xy_embedding: add PE to the cells (Eq. 1). Without it, X' is [X; X].
        centroid_embedding: add the encoded centroids to the tokens (Eq. 4).
        detach_regions: no gradient goes through the regions into the concept convolution, so that
            only losses of the returned regions' logits train it.
        batch_norm: a batch norm of what is added to the features, as GloRe has one. The paper has
            none.
        sync_batch_norm: normalise over the batches of all GPUs.
        init_as_identity: start with a zero back-projection, or with a zero weight of the batch
            norm, so that the output equals the input.
        concept_prior: value of every region at the start, where the features are zero. Focal
            losses need a low one.
        stride: pixels per cell. Recorded regions carry it, to be mapped to the image.

    Raises:
        ValueError: for an option that is unknown, out of its range or does not divide.

    Shape:
        ``x`` (B, C, h, w) -> features (B, C, h, w) in the dtype of ``x``, and the regions.

    Cost: ``h*w*(C*(K + 2D) + 2*K*D)`` multiply-adds, and those of the mixer, which do not depend on
    h and w. Memory: ``h*w*(2*K + D)`` beside input and output. Under autocast, the sums over cells
    run in float32. With sum pooling and no token norm the mixer does too, because float16 could not
    hold its input.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_concepts: int = 512,
        token_dim: int = 512,
        num_heads: int = 8,
        num_layers: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        token_mixer: str = "transformer",
        token_pooling: str = "sum",
        token_norm: bool = False,
        xy_embedding: bool = True,
        centroid_embedding: bool = True,
        detach_regions: bool = False,
        batch_norm: bool = False,
        sync_batch_norm: bool = False,
        init_as_identity: bool = False,
        concept_prior: float = 0.01,
        stride: int | None = None,
    ):
        super().__init__(in_channels, stride=stride)
        if in_channels % 2:
            raise ValueError(f"in_channels must be even for the x-y embedding, got {in_channels}")
        check_at_least_one("num_concepts (MODEL.SGR.NUM_CONCEPTS)", num_concepts)
        check_at_least_one("token_dim (MODEL.SGR.TOKEN_DIM)", token_dim)
        if token_dim % 4:
            raise ValueError(f"token_dim must be a multiple of 4, got {token_dim}")
        if token_pooling not in TOKEN_POOLINGS:
            raise ValueError(
                f"unknown token pooling {token_pooling!r}; known: {', '.join(TOKEN_POOLINGS)}"
            )
        if not 0 < concept_prior < 1:
            raise ValueError(f"concept_prior must lie between 0 and 1, got {concept_prior}")
        self.num_concepts = num_concepts
        self.token_dim = token_dim
        self.token_pooling = token_pooling
        self.xy_embedding = xy_embedding
        self.centroid_embedding = centroid_embedding
        self.detach_regions = detach_regions

        self.concepts = nn.Conv2d(2 * in_channels, num_concepts, kernel_size=1)
        self.reduction = nn.Conv2d(2 * in_channels, token_dim, kernel_size=1)
        self.token_norm = nn.LayerNorm(token_dim) if token_norm else nn.Identity()
        self.mixer = build_token_mixer(
            token_mixer,
            num_tokens=num_concepts,
            token_dim=token_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
        )
        self.projection = nn.Conv2d(token_dim, in_channels, kernel_size=1)

        nn.init.constant_(self.concepts.bias, math.log(concept_prior / (1 - concept_prior)))
        self.batch_norm: nn.Module = nn.Identity()
        if batch_norm:
            self.batch_norm = batch_norm_of_update(
                in_channels, sync=sync_batch_norm, zero=init_as_identity
            )
        elif init_as_identity:
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        sgr = cfg.MODEL.SGR
        return {
            "num_concepts": sgr.NUM_CONCEPTS,
            "token_dim": sgr.TOKEN_DIM,
            "num_heads": sgr.NUM_HEADS,
            "num_layers": sgr.NUM_LAYERS,
            "dim_feedforward": sgr.DIM_FEEDFORWARD,
            "dropout": sgr.DROPOUT,
            "token_mixer": sgr.TOKEN_MIXER,
            "token_pooling": sgr.TOKEN_POOLING,
            "token_norm": sgr.TOKEN_NORM,
            "xy_embedding": sgr.XY_EMBEDDING,
            "centroid_embedding": sgr.CENTROID_EMBEDDING,
            "detach_regions": sgr.DETACH_REGIONS,
            "batch_norm": sgr.BATCH_NORM,
            "sync_batch_norm": cfg.MODEL.SEM_SEG_HEAD.NORM == "SyncBN",
            "init_as_identity": sgr.INIT_AS_IDENTITY,
            "concept_prior": sgr.CONCEPT_PRIOR,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, ConceptRegions]:
        self.check_features(x)
        height, width = x.shape[-2:]
        # Eq. 4 counts cells from 1, and so do both embeddings.
        rows = _count_from_one(height, x)
        columns = _count_from_one(width, x)

        logits, features = self._convolve_positional(x, rows, columns)
        with torch.autocast(x.device.type, enabled=False):
            regions = at_least_float32(logits).sigmoid()
            if self.detach_regions:
                regions = regions.detach()
            tokens, centroids = self._pool(regions, at_least_float32(features), rows, columns)
        refined = self._reason(tokens, centroids)
        back = (refined.mT @ regions.flatten(2)).unflatten(2, (height, width))
        enhanced = x + self.batch_norm(self.projection(back)).to(x.dtype)
        return enhanced, ConceptRegions(logits, tokens, centroids)

    def _convolve_positional(self, x: Tensor, rows: Tensor, columns: Tensor):
        """Eq. 1 to 3: both convolutions of X', (B, K, h, w) and (B, D, h, w)."""
        halves = [
            convolution.weight.flatten(1).split(self.in_channels, dim=1)
            for convolution in (self.concepts, self.reduction)
        ]
        weight = torch.cat([weight_x + weight_y for weight_x, weight_y in halves])
        bias = torch.cat((self.concepts.bias, self.reduction.bias))
        out = F.conv2d(x, weight[..., None, None], bias)
        if self.xy_embedding:
            code_x = sine_encoding(columns, self.in_channels).T
            code_y = sine_encoding(rows, self.in_channels).T
            table_x = torch.cat([weight_x @ code_x for weight_x, _ in halves])
            table_y = torch.cat([weight_y @ code_y for _, weight_y in halves])
            out = out + table_x[:, None, :] + table_y[:, :, None]
        return out.split((self.num_concepts, self.token_dim), dim=1)

    def _pool(self, regions: Tensor, features: Tensor, rows: Tensor, columns: Tensor):
        """Eq. 3 and 4: tokens (B, K, D), and centroids (B, K, 2) as (x, y), counted from 1."""
        tokens = regions.flatten(2) @ features.flatten(2).mT
        # Sums along one axis first: a product with all cells at once rounds twenty times as much.
        in_rows, in_columns = regions.sum(dim=3), regions.sum(dim=2)
        mass = in_rows.sum(dim=2, keepdim=True)
        centroids = torch.stack(((in_columns * columns).sum(2), (in_rows * rows).sum(2)), dim=2)
        mass = mass.clamp_min(MASS_FLOOR)
        if self.token_pooling == "mean":
            tokens = tokens / mass
        return tokens, centroids / mass

    def _reason(self, tokens: Tensor, centroids: Tensor) -> Tensor:
        """Sec. 3.2: the tokens with their positions, refined; (B, K, D)."""
        if self.centroid_embedding:
            tokens = tokens + sine_encoding(centroids, self.token_dim // 2).flatten(-2)
        tokens = self.token_norm(tokens)
        if self.token_pooling == "sum" and isinstance(self.token_norm, nn.Identity):
            with torch.autocast(tokens.device.type, enabled=False):
                return self.mixer(tokens)
        return self.mixer(tokens)


def _count_from_one(length: int, like: Tensor) -> Tensor:
    dtype = float32_or_wider(like.dtype)
    return torch.arange(1, length + 1, device=like.device, dtype=dtype)
