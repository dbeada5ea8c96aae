"""Mask2Former as a Detectron2 meta-architecture."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from .criteria.point_criterion import PointSetCriterion
from .inference import merge_by_pixel_within_masks
from .segmentor import MaskFormerSegmentor


@META_ARCH_REGISTRY.register()
class Mask2FormerSegmentor(MaskFormerSegmentor):
    """:class:`MaskFormerSegmentor` that trains on points of the masks (Mask2Former).

    The rest of Mask2Former is in its head: see :class:`MaskedAttentionPredictor` and
    :class:`DeformablePixelDecoder`.
    """

    criterion_class = PointSetCriterion
    panoptic_merge = staticmethod(merge_by_pixel_within_masks)
