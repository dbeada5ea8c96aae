"""Backbones with and without reasoning modules, by name, in Detectron2's registry."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .reasoning_backbone import add_reasoning_from_config
from .swin import SwinTransformer

__all__ = [
    "build_sgr_backbone",
    "build_sgr_resnet_backbone",
    "build_sgr_resnet_fpn_backbone",
    "build_sgr_swin_backbone",
    "build_sgr_swin_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
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
    return _build_pyramid(cfg, build_sgr_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The Swin Transformer that ``cfg.MODEL.SWIN`` describes.

    Unless the config says otherwise, the embedding of the patches and the first stage are frozen:
    2 is Detectron2's default of ``cfg.MODEL.BACKBONE.FREEZE_AT``, and 0 trains everything. The
    other backbones on Swin share this.
    """
    return SwinTransformer(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_sgr_swin_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Swin Transformer with reasoning modules on ``cfg.MODEL.SGR.IN_FEATURES``."""
    return add_reasoning_from_config(build_swin_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """A feature pyramid on Swin."""
    return _build_pyramid(cfg, build_swin_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_sgr_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """A feature pyramid on Swin, with the reasoning modules between the two."""
    return _build_pyramid(cfg, build_sgr_swin_backbone(cfg, input_shape))


def _build_pyramid(cfg, bottom_up: Backbone) -> FPN:
    """Detectron2's feature pyramid of ``cfg.MODEL.FPN``, with its pooled last level."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
