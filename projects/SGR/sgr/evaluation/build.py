"""The evaluators of a dataset, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from .sem_seg_evaluator import CheckedSemSegEvaluator
from .token_evaluator import TokenSemanticsEvaluator

__all__ = ["build_evaluator"]

# Panoptic datasets have label maps beside their segments, or the evaluator says that they do not.
_EVALUATORS = {
    "ade20k_panoptic_seg": CheckedSemSegEvaluator,
    "cityscapes_sem_seg": CheckedSemSegEvaluator,
    "coco": COCOEvaluator,
    "coco_panoptic_seg": CheckedSemSegEvaluator,
    "sem_seg": CheckedSemSegEvaluator,
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build what measures a model on a dataset.

    "coco" gives box and mask AP; "sem_seg", "cityscapes_sem_seg", "coco_panoptic_seg" and
    "ade20k_panoptic_seg" give the mIoU of ``sem_seg``, by Detectron2 for all of them.
    ``cfg.TEST.TOKENS.ENABLED`` adds the token metrics to any.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        dataset_name: a registered dataset.
        output_folder: where results are written; None stands for OUTPUT_DIR/inference.

    Raises:
        ValueError: if the metadata's ``evaluator_type`` is missing or not a known one, or mIoU is
            to be measured and a record has no label map.
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
