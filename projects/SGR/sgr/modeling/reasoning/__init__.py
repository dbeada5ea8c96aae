"""Modules between features and features. Imports torch and fvcore only."""

from .build import REASONING_REGISTRY, ReasoningModule, apply_reasoning_defaults, build_reasoning
from .concept_regions import ConceptRegions
from .glore import GloRe
from .placement import add_reasoning, remove_reasoning
from .position_encoding import sine_encoding
from .sgr import SemanticGlobalReasoning
from .uniform import UniformReasoning
