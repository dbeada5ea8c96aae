"""A control for experiments: as large as the paper's module, but without concepts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .build import REASONING_REGISTRY
from .sgr import SemanticGlobalReasoning


@REASONING_REGISTRY.register()
class UniformReasoning(SemanticGlobalReasoning):
    """The module of the paper whose regions all are the whole image, with fixed probabilities.

    Every region has the probability 1 / (K + 1) in every cell. So all tokens of an image are alike
    (a sum over all its cells), and every cell gets the same vector back: what this module gains
    comes from the additional parameters and from the mean of the image, not from regions. It has
    the parameters and the costs of :class:`SemanticGlobalReasoning`. The convolution that would
    make the regions is not trained, and nothing supervises the regions.
    """

    supervised_concepts = False
    config_defaults = {"SUPERVISION.WEIGHT": 0.0}

    def __init__(self, in_channels: int, **options: Any):
        super().__init__(in_channels, **options)
        self.concepts.requires_grad_(False)

    def _convolve_positional(self, x: Tensor, rows: Tensor, columns: Tensor):
        logits, features = super()._convolve_positional(x, rows, columns)
        return torch.full_like(logits, -math.log(self.num_concepts)), features
