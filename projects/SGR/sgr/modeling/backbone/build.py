"""Backbones with and without reasoning modules, by name, in Detectron2's registry."""

from __future__ import annotations

from functools import partial

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from ..layers.checks import find_registered
from ..reasoning import add_reasoning, build_reasoning
from .swin import SwinTransformer
from .timm_backbone import TimmBackbone


@BACKBONE_REGISTRY.register()
def build_sgr_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone ``cfg.MODEL.SGR.BACKBONE_NAME``, with reasoning modules.

    The modules sit on ``cfg.MODEL.SGR.IN_FEATURES``: see :func:`add_reasoning_from_config`.

    Raises:
        ValueError: if there is no backbone of that name, or no such feature.
    """
    name = cfg.MODEL.SGR.BACKBONE_NAME
    find_registered(BACKBONE_REGISTRY, name, "MODEL.SGR.BACKBONE_NAME")
    return _build_with_reasoning(name, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Build the Swin Transformer that ``cfg.MODEL.SWIN`` describes.

    By default the embedding of the patches and the first stage are frozen, because Detectron2's
    default of ``cfg.MODEL.BACKBONE.FREEZE_AT`` is 2. Set it to 0 to train everything.
    """
    return SwinTransformer(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's feature pyramid of ``cfg.MODEL.FPN`` on a Swin Transformer."""
    return _build_pyramid(cfg, build_swin_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Build the model of timm that ``cfg.MODEL.TIMM`` describes.

    By default the parts up to "res2" are frozen, because Detectron2's default of
    ``cfg.MODEL.BACKBONE.FREEZE_AT`` is 2. Set it to 0 to train everything.

    If ``cfg.MODEL.WEIGHTS`` names a file, a warning tells where the config prepares images
    otherwise than the pretraining did. The config is not changed, because others read it too.
    """
    backbone = TimmBackbone(cfg, input_shape)
    if cfg.MODEL.WEIGHTS:
        backbone.warn_of_other_pixels(cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's feature pyramid of ``cfg.MODEL.FPN`` on a model of timm."""
    return _build_pyramid(cfg, build_timm_backbone(cfg, input_shape))


def _build_pyramid(cfg, bottom_up: Backbone) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _build_with_reasoning(name: str, cfg, input_shape: ShapeSpec) -> Backbone:
    return add_reasoning_from_config(BACKBONE_REGISTRY.get(name)(cfg, input_shape), cfg)


def _register_with_reasoning(name: str) -> None:
    """Register "build_sgr_X" as a short name for "build_sgr_backbone" with "build_X"."""

    def build(cfg, input_shape: ShapeSpec) -> Backbone:
        return _build_with_reasoning(name, cfg, input_shape)

    build.__name__ = name.replace("build_", "build_sgr_")
    BACKBONE_REGISTRY.register(build)


for name in ("resnet", "resnet_fpn", "swin", "swin_fpn", "timm", "timm_fpn"):
    _register_with_reasoning(f"build_{name}_backbone")


def add_reasoning_from_config(backbone: Backbone, cfg) -> Backbone:
    """Put the reasoning module of ``cfg.MODEL.SGR`` on each feature of its IN_FEATURES.

    Where the backbone does not put these features out, but the network below it does (a feature
    pyramid's ``bottom_up``), they are enhanced there, before the pyramid reads them.

    Returns:
        The same backbone.

    Raises:
        ValueError: for a feature that neither puts out.
    """
    names = cfg.MODEL.SGR.IN_FEATURES
    place = backbone
    if not set(names) <= backbone.output_shape().keys():
        place = getattr(backbone, "bottom_up", backbone)
    shapes = place.output_shape()
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            f"unknown feature {', '.join(map(repr, unknown))} in MODEL.SGR.IN_FEATURES; "
            f"the backbone puts out: {', '.join(shapes)}"
        )
    add_reasoning(place, {name: partial(build_reasoning, cfg) for name in names})
    return backbone
