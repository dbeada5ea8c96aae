"""Supervising concept regions by connected components. Imports torch and SciPy only."""

from .criterion import ConceptCriterion, ConceptLosses
from .matcher import ConceptMatcher
from .targets import ComponentTargets, component_targets

__all__ = [
    "ComponentTargets",
    "ConceptCriterion",
    "ConceptLosses",
    "ConceptMatcher",
    "component_targets",
]
