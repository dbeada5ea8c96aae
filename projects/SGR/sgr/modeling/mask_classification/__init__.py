"""Mask classification: the heads, criteria and meta-architectures of MaskFormer and Mask2Former."""

from ..layers.deformable_attention import DeformableAttention
from ..layers.deformable_sampling import multi_scale_deformable_attention
from .criteria.matcher import HungarianMatcher
from .criteria.point_criterion import PointSetCriterion
from .criteria.point_matcher import PointMatcher
from .criteria.set_criterion import CRITERION_REGISTRY, SetCriterion
from .decoders.base import PixelDecoderOutput, PyramidDecoder, build_pixel_decoder
from .decoders.deformable import DeformablePixelDecoder
from .decoders.fpn import FPNPixelDecoder, TransformerFPNPixelDecoder
from .head import MaskClassificationHead
from .inference import (
    PANOPTIC_MERGE_REGISTRY,
    instance_inference,
    merge_by_pixel,
    merge_by_pixel_within_masks,
    semantic_inference,
)
from .predictors.base import PREDICTOR_REGISTRY, QueryPredictor, build_predictor
from .predictors.masked_attention import MaskedAttentionPredictor
from .predictors.transformer import TransformerPredictor
from .segmentor import Mask2FormerSegmentor, MaskFormerSegmentor
