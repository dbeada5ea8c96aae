"""SegFormer's decoder (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from sgr.modeling.per_pixel.head import PerPixelHead, conv_norm_relu
from sgr.modeling.per_pixel.losses import resize


@SEM_SEG_HEADS_REGISTRY.register()
class SegFormerHead(PerPixelHead):
    """Each feature is projected and resized to the finest; a 1x1 convolution fuses them all."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        conv_dim: int = 768,
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape, in_features, norm: see :class:`PerPixelHead`.
            conv_dim: channels of the projections and of what is fused; 256 for B0 and B1.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=conv_dim, norm=norm, **options
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(input_shape[name].channels, conv_dim, 1) for name in self.in_features
        )
        self.fuse = conv_norm_relu(len(self.in_features) * conv_dim, conv_dim, 1, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "conv_dim": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        size = features[self.in_features[0]].shape[-2:]
        maps = [
            resize(project(features[name]), size)
            for name, project in zip(self.in_features, self.projections)
        ]
        return self.fuse(torch.cat(maps, dim=1))
