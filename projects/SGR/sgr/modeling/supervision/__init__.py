"""Supervising concept regions by connected components. Imports torch, SciPy and fvcore only."""

from .criterion import ConceptCriterion, ConceptLoss, ConceptLosses
from .matcher import ConceptMatcher
from .side_criteria import SIDE_CRITERION_REGISTRY, ConceptSupervision, SideCriterion
from .targets import ComponentMaps, ComponentTargets, component_targets
