"""Dataset mappers: they turn a record of a dataset into the input of a model in training.

Each mapper reads an image and its ground truth, augments both together and computes the connected
components of the crop. :class:`SemanticConceptMapper` is for per-pixel heads. The others add masks
for mask classification: one per class (:class:`MaskFormerSemanticConceptMapper`), per segment
(:class:`PanopticConceptMapper`) or per instance (:class:`InstanceConceptMapper`).
:class:`DetectionConceptMapper` is Detectron2's mapper for detectors, with components.
"""

from .build import MAPPER_REGISTRY, build_mapper
from .concept_mapper import ConceptMapper
from .detection import DetectionConceptMapper
from .instance import InstanceConceptMapper
from .panoptic import PanopticConceptMapper
from .semantic import MaskFormerSemanticConceptMapper, SemanticConceptMapper
