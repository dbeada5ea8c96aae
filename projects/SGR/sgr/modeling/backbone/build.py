"""Backbones with reasoning modules, by name, in Detectron2's registry."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .reasoning_backbone import add_reasoning_from_config

__all__ = [
    "build_sgr_backbone",
    "build_sgr_resnet_backbone",
    "build_sgr_resnet_fpn_backbone",
]


@BACKBONE_REGISTRY.register()
def build_sgr_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The registered backbone that ``cfg.MODEL.SGR.BACKBONE_NAME`` names, with reasoning modules.

    Raises:
        ValueError: if there is no backbone of that name.
    """
    name = cfg.MODEL.SGR.BACKBONE_NAME
    if name not in BACKBONE_REGISTRY:
        known = ", ".join(sorted(key for key, _ in BACKBONE_REGISTRY))
        raise ValueError(f"MODEL.SGR.BACKBONE_NAME is {name!r}; registered backbones: {known}")
    return add_reasoning_from_config(BACKBONE_REGISTRY.get(name)(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_sgr_resnet_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ResNet with reasoning modules on ``cfg.MODEL.SGR.IN_FEATURES``."""
    return add_reasoning_from_config(build_resnet_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_sgr_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ResNet-FPN, with the reasoning modules between ResNet and pyramid."""
    return FPN(
        bottom_up=build_sgr_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
