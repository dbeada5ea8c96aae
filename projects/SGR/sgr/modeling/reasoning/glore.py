"""Graph-based global reasoning, the baseline of the paper's Tables 1 to 3 ("GCNET")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_at_least_one
from ..layers.precision import at_least_float32
from .build import REASONING_REGISTRY, ReasoningModule, batch_norm_of_update
from .concept_regions import ConceptRegions

# Regions are clipped to [this, 1 - this], where their log-odds are finite.
REGION_FLOOR = 1e-6


class NodeGraphConvolution(nn.Module):
    """One graph convolution with a learned adjacency A: ``relu(V + A V) W``.

    The formula of Chen et al. is ``(I - A) V W``. The sign of a learned A is arbitrary. Their code
    has the ReLU, and a bias of A V, which the formula leaves out. The token mixer "graph" (Table 4)
    differs: it stacks layers with the ReLU behind W, and normalises the tokens at the end.

    Args:
        num_nodes: N.
        state_dim: D.

    Shape: (B, N, D) -> (B, N, D). Cost: ``N * D * (N + D)`` multiply-adds per image.
    """

    def __init__(self, num_nodes: int, state_dim: int):
        super().__init__()
        self.conv1 = nn.Conv1d(num_nodes, num_nodes, kernel_size=1)
        self.conv2 = nn.Conv1d(state_dim, state_dim, kernel_size=1, bias=False)

    def forward(self, nodes: Tensor) -> Tensor:
        mixed = (nodes + self.conv1(nodes)).relu()
        return F.linear(mixed, self.conv2.weight.squeeze(2))


@REASONING_REGISTRY.register()
class GloRe(ReasoningModule):
    """The global reasoning unit of Chen et al., "Graph-Based Global Reasoning Networks".

    CVPR 2019, arXiv:1811.12814. A linear projection B (N x cells) of the features X pools the
    reduced features into N nodes. A graph convolution reasons between the nodes. The same B brings
    the result back to the cells:

        V = B phi(X)^T / cells,   Z = relu(V + A V) W,   Y = X + BN(extend(Z^T B)),

    where phi and extend are 1x1 convolutions, and another one gives B. These are the formulas of
    the public code (``GloRe_Unit_2D``), and parameters have its names and shapes. It divides by the
    number of cells for images of any size.

    **Regions.** A cell's share in a node's region is ``|b|``, its weight in the node's sum,
    relative to the node's largest weight in the map that the module gets, padding included. So the
    share depends a little on what an image is batched with, and the largest one may lie in cells
    that are cut off later. :class:`ConceptRegions` has the log-odds. docs/design.md, "GloRe", says
    why. No concept losses supervise the regions.

    Args:
        in_channels: C.
        num_concepts: N, the nodes.
        token_dim: D, the channels of a node's state. The public code has D = 2N: D is C/2 in its
            networks for video, an option in those for segmentation. The defaults are those of
            PaddleSeg's model for Cityscapes, a head of 512 channels.
        init_as_identity: start with a normalisation of weight zero, so that the output equals the
            input, as published.
        sync_batch_norm: normalise over the batches of all GPUs.
        stride: pixels per cell. Recorded regions carry it, to be mapped to the image.

    Raises:
        ValueError: for less than one node or channel.

    Shape:
        ``x`` (B, C, h, w) -> features (B, C, h, w) in the dtype of ``x``, and the regions. Their
        tokens (B, N, D) are the nodes V. They have no centroids.

    Cost: ``3*h*w*C*N + 2*C*D*N + N*D*(N + D)`` multiply-adds; memory ``h*w*(2*C + 4*N)`` at most
    beside input and output. There is no map of D channels: both 1x1 convolutions commute with the
    sums over cells and nodes, so they run on nodes. The literal order costs
    ``h*w*(C*(N + 2*D) + 2*N*D) + N*D*(N + D)``, which is more if D is at least 2N, as published,
    and the map has at least 2N cells. Everything behind the projection runs in float32 under
    autocast: its result is cubic in the features, and an overflow would stay in the running
    statistics.
    """

    supervised_concepts = False
    config_defaults = {
        "NUM_CONCEPTS": 64,
        "TOKEN_DIM": 128,
        "INIT_AS_IDENTITY": True,
        "SUPERVISION.WEIGHT": 0.0,
    }

    def __init__(
        self,
        in_channels: int,
        *,
        num_concepts: int = 64,
        token_dim: int = 128,
        init_as_identity: bool = True,
        sync_batch_norm: bool = False,
        stride: int | None = None,
    ):
        super().__init__(in_channels, stride=stride)
        check_at_least_one("num_concepts", num_concepts)
        check_at_least_one("token_dim", token_dim)
        self.num_concepts = num_concepts
        self.token_dim = token_dim

        self.conv_state = nn.Conv2d(in_channels, token_dim, kernel_size=1)
        self.conv_proj = nn.Conv2d(in_channels, num_concepts, kernel_size=1)
        self.gcn = NodeGraphConvolution(num_concepts, token_dim)
        self.conv_extend = nn.Conv2d(token_dim, in_channels, kernel_size=1, bias=False)
        self.blocker = batch_norm_of_update(
            in_channels, sync=sync_batch_norm, zero=init_as_identity
        )

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """Read NUM_CONCEPTS (N), TOKEN_DIM (D) and INIT_AS_IDENTITY of ``cfg.MODEL.SGR``.

        The other keys there (token mixer and pooling, embeddings, prior, supervision) have no
        meaning for it. The batch norm is synchronised if that of the head is
        (``cfg.MODEL.SEM_SEG_HEAD.NORM`` "SyncBN").
        """
        return {
            "num_concepts": cfg.MODEL.SGR.NUM_CONCEPTS,
            "token_dim": cfg.MODEL.SGR.TOKEN_DIM,
            "init_as_identity": cfg.MODEL.SGR.INIT_AS_IDENTITY,
            "sync_batch_norm": cfg.MODEL.SEM_SEG_HEAD.NORM == "SyncBN",
        }

    def forward(self, x: Tensor) -> tuple[Tensor, ConceptRegions]:
        self.check_features(x)
        projection = at_least_float32(self.conv_proj(x))
        with torch.autocast(x.device.type, enabled=False):
            weights = projection.flatten(2)
            nodes = self._pool(weights, at_least_float32(x).flatten(2))
            extended = F.linear(self.gcn(nodes), self.conv_extend.weight.flatten(1))
            back = (extended.mT @ weights).unflatten(2, x.shape[-2:])
            enhanced = x + self.blocker(back).to(x.dtype)
            return enhanced, ConceptRegions(_log_odds(projection), nodes)

    def _pool(self, weights: Tensor, features: Tensor) -> Tensor:
        """Nodes (B, N, D): means over the cells of the reduced features, weighted by B.

        It reduces after the pooling. The bias of the reduction counts as much as the mean weight.
        """
        pooled = weights @ features.mT / weights.shape[2]
        bias = weights.mean(dim=2, keepdim=True) * self.conv_state.bias
        return F.linear(pooled, self.conv_state.weight.flatten(1)) + bias


def _log_odds(projection: Tensor) -> Tensor:
    """(B, N, h, w) log-odds of the weights' magnitudes, relative to the map's largest of a node."""
    magnitudes = projection.abs()
    largest = magnitudes.amax(dim=(2, 3), keepdim=True)
    shares = magnitudes / largest.clamp_min(torch.finfo(projection.dtype).tiny)
    return torch.logit(shares, eps=REGION_FLOOR)
