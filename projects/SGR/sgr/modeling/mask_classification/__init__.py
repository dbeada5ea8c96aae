"""Mask classification: MaskFormer's head, criterion and meta-architecture."""

from .criterion import SetCriterion
from .head import MaskClassificationHead
from .inference import instance_inference, panoptic_inference, semantic_inference
from .matcher import HungarianMatcher
from .pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder, build_pixel_decoder
from .predictor import TransformerPredictor
from .segmentor import MaskFormerSegmentor

__all__ = [
    "FPNPixelDecoder",
    "HungarianMatcher",
    "MaskClassificationHead",
    "MaskFormerSegmentor",
    "SetCriterion",
    "TransformerFPNPixelDecoder",
    "TransformerPredictor",
    "build_pixel_decoder",
    "instance_inference",
    "panoptic_inference",
    "semantic_inference",
]
