"""HRNet (Wang et al., TPAMI 2021) and its head, as the public ProtoSeg has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone
from torch import Tensor, nn

from sgr.modeling.backbone import build_timm_backbone
from sgr.modeling.per_pixel.head import PerPixelHead, conv_norm_relu
from sgr.modeling.per_pixel.losses import resize

PUBLIC = "cls_head."  # what only the names of a public file begin with


@BACKBONE_REGISTRY.register()
def build_hrnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build timm's HRNet ``cfg.MODEL.TIMM.NAME`` as networks for segmentation have it.

    Features are those of the branches, at strides 4 to 32. Where branches are added up, the coarse
    ones are resized bilinearly between corners; timm's own HRNet takes the nearest cell.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.OPTIONS.head = ""
    backbone = build_timm_backbone(cfg, input_shape)
    for module in backbone.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", True
    return backbone


@SEM_SEG_HEADS_REGISTRY.register()
class ConcatHead(PerPixelHead):
    """All features are resized to the finest and concatenated; a 3x3 convolution follows."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        conv_dim: int = 720,
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape, in_features, norm: see :class:`PerPixelHead`.
            conv_dim: channels of the convolution.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=conv_dim, norm=norm, **options
        )
        channels = sum(input_shape[name].channels for name in self.in_features)
        self.conv = conv_norm_relu(channels, conv_dim, 3, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "conv_dim": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        maps = [features[name] for name in self.in_features]
        size = maps[0].shape[-2:]
        return self.conv(torch.cat([resize(each, size, align_corners=True) for each in maps], 1))

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a public file of ProtoSeg on HRNet; of other files, nothing.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it. The public convolution has
        a bias before its batch norm. Here the norm's mean takes it in, which computes the same.
        """
        state = {name.removeprefix("module."): value for name, value in state.items()}
        mean = f"{PUBLIC}1.0.running_mean"
        if not {f"{PUBLIC}0.bias", mean} <= state.keys():
            return {}
        bias = state.pop(f"{PUBLIC}0.bias")
        state[mean] = state[mean] - bias
        renamed = {}
        for name, value in state.items():
            place, _, rest = name.partition(".")
            if name.startswith(f"{PUBLIC}0."):
                name = f"{prefix}conv.{name.removeprefix(f'{PUBLIC}0.')}"
            elif name.startswith(f"{PUBLIC}1.0."):
                name = f"{prefix}conv.norm.{name.removeprefix(f'{PUBLIC}1.0.')}"
            elif place == "backbone":
                name = f"backbone.net.{rest}"
            elif name.startswith("proj_head.mlp2."):
                continue  # the same tensors as proj_head.proj
            else:
                name = f"{prefix}predictor.{name}"
            renamed[name] = value
        return renamed
