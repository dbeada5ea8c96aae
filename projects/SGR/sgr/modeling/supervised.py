"""The meta-architectures with concept supervision, under names of their own in the registry."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor

from . import per_pixel  # noqa: F401 (registers)
from .mask_classification import Mask2FormerSegmentor, MaskFormerSegmentor
from .supervision.meta_arch import supervise_concepts

__all__ = [
    "ConceptGeneralizedRCNN",
    "ConceptMask2FormerSegmentor",
    "ConceptMaskFormerSegmentor",
    "ConceptSemanticSegmentor",
]

ConceptGeneralizedRCNN = supervise_concepts(GeneralizedRCNN)
ConceptMask2FormerSegmentor = supervise_concepts(Mask2FormerSegmentor)
ConceptMaskFormerSegmentor = supervise_concepts(MaskFormerSegmentor)
ConceptSemanticSegmentor = supervise_concepts(SemanticSegmentor)

for meta_arch in (
    ConceptGeneralizedRCNN,
    ConceptMask2FormerSegmentor,
    ConceptMaskFormerSegmentor,
    ConceptSemanticSegmentor,
):
    META_ARCH_REGISTRY.register(meta_arch)
