"""The evaluators of a dataset, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from .token_evaluator import TokenSemanticsEvaluator

__all__ = ["build_evaluator"]



def _coco_evaluator(dataset_name: str, *, output_dir: str) -> COCOEvaluator:
    # Detectron2's fast implementation needs its C++ extension; pycocotools' gives the same AP.
    try:
        from detectron2 import _C
    except ImportError:
        _C = None
    return COCOEvaluator(dataset_name, output_dir=output_dir, use_fast_impl=_C is not None)


_EVALUATORS = {"sem_seg": SemSegEvaluator, "coco": _coco_evaluator}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build what measures a model on a dataset.

    "sem_seg" gives mIoU, "coco" box and mask AP; ``cfg.TEST.TOKENS.ENABLED`` adds the token
    metrics to either.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        dataset_name: a registered dataset.
        output_folder: where results are written; None stands for OUTPUT_DIR/inference.

    Raises:
        ValueError: if the metadata's ``evaluator_type`` is missing or not a known one.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        raise ValueError(
            f"dataset {dataset_name} has evaluator_type {evaluator_type!r}, known are "
            f"{sorted(_EVALUATORS)}; set it with "
            f'MetadataCatalog.get("{dataset_name}").set(evaluator_type=...)'
        )
    evaluator = _EVALUATORS[evaluator_type](dataset_name, output_dir=output_folder)
    if not cfg.TEST.TOKENS.ENABLED:
        return evaluator
    return DatasetEvaluators(
        [evaluator, TokenSemanticsEvaluator(dataset_name, output_dir=output_folder)]
    )
