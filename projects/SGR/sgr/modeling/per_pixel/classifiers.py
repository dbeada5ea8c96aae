"""Classifiers of per-pixel heads: from features to logits."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..reasoning import ConceptRegions

PIXEL_CLASSIFIER_REGISTRY = Registry("PIXEL_CLASSIFIER")
PIXEL_CLASSIFIER_REGISTRY.__doc__ = """
Classifiers of per-pixel heads, chosen by ``cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER_NAME``. A registered
class is called as ``(cfg, in_channels, num_outputs, stride=...)``, where ``stride`` is that of the
features in pixels. Its modules have the interface of :class:`LinearClassifier`. A classifier that
assigns cells to prototypes can offer them as regions: it gives ``regions`` in its prediction and
has a method ``concept_regions(prediction)``, see :func:`sgr.record_concepts`. One that learns from
the levels of a tree of classes has an attribute ``levels``. If the loss has levels, the head sets
it to theirs, and labels are those of ``PixelLoss.level_labels``.
"""


class PixelPrediction(NamedTuple):
    """What a classifier puts out.

    Attributes:
        logits: (B, num_outputs, h, w).
        losses: in training, losses of the classifier's own. They are weighted already, and their
            names start with "loss_".
        regions: regions that the classifier has formed, or None.
    """

    logits: Tensor
    losses: dict[str, Tensor] = {}
    regions: ConceptRegions | None = None


@PIXEL_CLASSIFIER_REGISTRY.register()
class LinearClassifier(Conv2d):
    """A 1x1 convolution. It does not use ``stride``."""

    @configurable
    def __init__(self, in_channels: int, num_outputs: int, *, stride: int | None = None):
        super().__init__(in_channels, num_outputs, kernel_size=1)
        # Small weights: training starts near equal probabilities.
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, num_outputs: int) -> dict:
        return {"in_channels": in_channels, "num_outputs": num_outputs}

    def forward(self, features: Tensor, labels: Tensor | None = None) -> PixelPrediction:
        """
        Args:
            features: (B, in_channels, h, w).
            labels: (B, h, w) int64 classes of the cells or the value of ignored ones; given in
                training only.
        """
        return PixelPrediction(super().forward(features))
