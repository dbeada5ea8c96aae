"""Metrics, evaluators, and models that look at an image several times.

The token metrics import torch only, panoptic quality NumPy only; the rest needs Detectron2.
"""

from importlib import import_module

from .panoptic_quality import PanopticCounts, match_segments
from .token_metrics import (
    cell_label_counts,
    diversity,
    label_histograms,
    present_bins,
    semantics,
    token_histograms,
)

__all__ = [
    "CityscapesMeanIoUEvaluator",
    "FastCOCOEvaluator",
    "MeanIoUEvaluator",
    "MultiScaleSemanticSegmentor",
    "PanopticCounts",
    "PanopticQualityEvaluator",
    "SlidingWindowSegmentor",
    "ThingCOCOEvaluator",
    "TokenSemanticsEvaluator",
    "build_evaluator",
    "build_multi_scale_model",
    "cell_label_counts",
    "diversity",
    "evaluate_coco",
    "label_histograms",
    "match_segments",
    "present_bins",
    "semantics",
    "token_histograms",
]

_NEEDS_DETECTRON2 = {
    "CityscapesMeanIoUEvaluator": ".cityscapes_evaluator",
    "FastCOCOEvaluator": ".coco_evaluator",
    "MeanIoUEvaluator": ".sem_seg_evaluator",
    "MultiScaleSemanticSegmentor": "sgr.testing.multi_scale",
    "PanopticQualityEvaluator": ".panoptic_evaluator",
    "SlidingWindowSegmentor": "sgr.testing.sliding_window",
    "ThingCOCOEvaluator": ".thing_evaluator",
    "TokenSemanticsEvaluator": ".token_evaluator",
    "build_evaluator": ".build",
    "build_multi_scale_model": "sgr.testing.multi_scale",
    "evaluate_coco": ".coco_evaluator",
}


def __getattr__(name: str):
    if name in _NEEDS_DETECTRON2:
        return getattr(import_module(_NEEDS_DETECTRON2[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
