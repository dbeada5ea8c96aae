"""Dataset mappers: from a record of a dataset to what a model trains on.

All of them read an image and its ground truth, augment both together and compute the connected
components of the crop. :class:`SemanticConceptMapper` serves per-pixel heads; the others add the
masks that mask classification learns from: one per class
(:class:`MaskFormerSemanticConceptMapper`), per segment (:class:`PanopticConceptMapper`) or per
instance (:class:`InstanceConceptMapper`). :class:`DetectionConceptMapper` is Detectron2's own for
detectors, with components.
"""

from .build import MAPPER_REGISTRY, build_mapper
from .concept_mapper import ConceptMapper
from .detection import DetectionConceptMapper
from .instance import InstanceConceptMapper
from .panoptic import PanopticConceptMapper
from .semantic import MaskFormerSemanticConceptMapper, SemanticConceptMapper

__all__ = [
    "MAPPER_REGISTRY",
    "ConceptMapper",
    "DetectionConceptMapper",
    "InstanceConceptMapper",
    "MaskFormerSemanticConceptMapper",
    "PanopticConceptMapper",
    "SemanticConceptMapper",
    "build_mapper",
]
