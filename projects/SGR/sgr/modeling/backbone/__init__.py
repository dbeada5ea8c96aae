"""Backbones: Swin, models of timm, and reasoning modules on any of Detectron2's."""

from .build import (
    add_reasoning_from_config,
    build_sgr_backbone,
    build_swin_backbone,
    build_swin_fpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)
from .swin import SwinTransformer
from .timm_backbone import TimmBackbone
