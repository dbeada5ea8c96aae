"""The meta-architectures with concept supervision, under names of their own in the registry."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor

from .mask_classification import MaskFormerSegmentor
from .supervision.meta_arch import supervise_concepts

__all__ = [
    "ConceptGeneralizedRCNN",
    "ConceptMaskFormerSegmentor",
    "ConceptSemanticSegmentor",
]

ConceptGeneralizedRCNN = supervise_concepts(GeneralizedRCNN)
ConceptMaskFormerSegmentor = supervise_concepts(MaskFormerSegmentor)
ConceptSemanticSegmentor = supervise_concepts(SemanticSegmentor)

for meta_arch in (ConceptGeneralizedRCNN, ConceptMaskFormerSegmentor, ConceptSemanticSegmentor):
    META_ARCH_REGISTRY.register(meta_arch)
