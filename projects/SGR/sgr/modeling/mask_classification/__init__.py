"""Mask classification: the heads, criteria and meta-architectures of MaskFormer and Mask2Former."""

from .criterion import SetCriterion
from .deformable_attention import DeformableAttention, multi_scale_deformable_attention
from .deformable_pixel_decoder import DeformablePixelDecoder
from .head import MaskClassificationHead
from .inference import instance_inference, panoptic_inference, semantic_inference
from .mask2former import Mask2FormerSegmentor
from .masked_attention_predictor import MaskedAttentionPredictor
from .matcher import HungarianMatcher
from .pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder, build_pixel_decoder
from .point_criterion import PointSetCriterion
from .point_matcher import PointMatcher
from .predictor import PREDICTOR_REGISTRY, TransformerPredictor, build_predictor
from .segmentor import MaskFormerSegmentor

__all__ = [
    "DeformableAttention",
    "DeformablePixelDecoder",
    "FPNPixelDecoder",
    "HungarianMatcher",
    "Mask2FormerSegmentor",
    "MaskClassificationHead",
    "MaskFormerSegmentor",
    "MaskedAttentionPredictor",
    "PREDICTOR_REGISTRY",
    "PointMatcher",
    "PointSetCriterion",
    "SetCriterion",
    "TransformerFPNPixelDecoder",
    "TransformerPredictor",
    "build_pixel_decoder",
    "build_predictor",
    "instance_inference",
    "multi_scale_deformable_attention",
    "panoptic_inference",
    "semantic_inference",
]
