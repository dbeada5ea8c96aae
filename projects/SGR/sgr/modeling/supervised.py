"""The meta-architectures with concept supervision, under names of their own in the registry."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor

from . import per_pixel  # noqa: F401 (registers)
from .mask_classification import Mask2FormerSegmentor, MaskFormerSegmentor
from .supervision.meta_arch import supervise

__all__ = [
    "ConceptGeneralizedRCNN",
    "ConceptMask2FormerSegmentor",
    "ConceptMaskFormerSegmentor",
    "ConceptSemanticSegmentor",
]

ConceptGeneralizedRCNN = supervise(GeneralizedRCNN)
ConceptMask2FormerSegmentor = supervise(Mask2FormerSegmentor)
ConceptMaskFormerSegmentor = supervise(MaskFormerSegmentor)
ConceptSemanticSegmentor = supervise(SemanticSegmentor)

for meta_arch in (
    ConceptGeneralizedRCNN,
    ConceptMask2FormerSegmentor,
    ConceptMaskFormerSegmentor,
    ConceptSemanticSegmentor,
):
    META_ARCH_REGISTRY.register(meta_arch)
