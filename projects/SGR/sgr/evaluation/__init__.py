"""Metrics and evaluators.

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
    share_on_labels,
    token_histograms,
)

_NEEDS_DETECTRON2 = {
    "CityscapesMeanIoUEvaluator": ".cityscapes_evaluator",
    "FastCOCOEvaluator": ".coco_evaluator",
    "ImageIoUEvaluator": ".image_iou",
    "MeanIoUEvaluator": ".sem_seg_evaluator",
    "PanopticQualityEvaluator": ".panoptic_evaluator",
    "ThingCOCOEvaluator": ".coco_evaluator",
    "TokenSemanticsEvaluator": ".token_evaluator",
    "build_evaluator": ".build",
    "evaluate_coco": ".coco_evaluator",
}


def __getattr__(name: str):
    if name in _NEEDS_DETECTRON2:
        return getattr(import_module(_NEEDS_DETECTRON2[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
