"""UperNet (Xiao et al., ECCV 2018): pyramid pooling on top of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_at_least_one
from .head import PerPixelHead, check_batch_statistics, conv_norm_relu
from .losses import resize


class PyramidPooling(nn.Module):
    """Pyramid pooling (PSPNet): a map, and its means over the cells of several grids, are fused.

    Args:
        in_channels: C.
        out_channels: channels of each grid's 1x1 convolution, and of the 3x3 convolution that
            fuses them.
        scales: sides of the grids, cells. If the map has fewer cells, cells of the grid share
            them.
        norm: norm of the convolutions.

    Shape:
        (B, C, h, w) -> (B, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, *, scales: Sequence[int], norm: str):
        super().__init__()
        for scale in scales:
            check_at_least_one("scales (MODEL.SEM_SEG_HEAD.POOL_SCALES)", scale)
        self.scales = tuple(scales)
        self.projections = nn.ModuleList(
            conv_norm_relu(in_channels, out_channels, 1, norm) for _ in self.scales
        )
        self.bottleneck = conv_norm_relu(
            in_channels + len(self.scales) * out_channels, out_channels, 3, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [x]
        for scale, projection in zip(self.scales, self.projections):
            pooled = F.adaptive_avg_pool2d(x, scale)
            check_batch_statistics(pooled, projection.norm)
            levels.append(resize(projection(pooled), x.shape[-2:]))
        return self.bottleneck(torch.cat(levels, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class UperNetHead(PerPixelHead):
    """Pyramid pooling on the coarsest feature, and a feature pyramid down to the finest one.

    All levels are resized to the finest stride, and a 3x3 convolution fuses them. It has two thirds
    of the model's multiply-adds: with four levels of 512 channels, 155 of 236 GFLOPs on a 512x512
    image with Swin-T. Its input takes 134 MB per image.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        conv_dim: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape, in_features, norm: see :class:`PerPixelHead`.
            conv_dim: channels of every convolution.
            pool_scales: sides of the grids of the pyramid pooling.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=conv_dim, norm=norm, **options
        )
        *finer, coarsest = [input_shape[name].channels for name in self.in_features]
        self.pooling = PyramidPooling(coarsest, conv_dim, scales=pool_scales, norm=norm)
        self.laterals = nn.ModuleList(
            conv_norm_relu(channels, conv_dim, 1, norm) for channels in finer
        )
        self.outputs = nn.ModuleList(conv_norm_relu(conv_dim, conv_dim, 3, norm) for _ in finer)
        self.fuse = conv_norm_relu(len(self.in_features) * conv_dim, conv_dim, 3, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "conv_dim": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "pool_scales": cfg.MODEL.SEM_SEG_HEAD.POOL_SCALES,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        *finer, coarsest = [features[name] for name in self.in_features]
        y = self.pooling(coarsest)
        levels = [y]
        for feature, lateral, output in reversed(list(zip(finer, self.laterals, self.outputs))):
            narrow = lateral(feature)
            y = narrow + resize(y, narrow.shape[-2:])
            levels.insert(0, output(y))
        # The finest level comes first. The others are resized to it.
        size = levels[0].shape[-2:]
        return self.fuse(torch.cat([resize(level, size) for level in levels], dim=1))
