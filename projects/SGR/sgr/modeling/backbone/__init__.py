"""Reasoning modules on Detectron2's backbones."""

from .build import build_sgr_backbone, build_sgr_resnet_backbone, build_sgr_resnet_fpn_backbone
from .reasoning_backbone import add_reasoning, add_reasoning_from_config

__all__ = [
    "add_reasoning",
    "add_reasoning_from_config",
    "build_sgr_backbone",
    "build_sgr_resnet_backbone",
    "build_sgr_resnet_fpn_backbone",
]
