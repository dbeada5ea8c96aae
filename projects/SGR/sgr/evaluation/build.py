"""The evaluators of a dataset, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import META_ARCH_REGISTRY

from .panoptic_evaluator import PanopticQualityEvaluator
from .sem_seg_evaluator import CheckedSemSegEvaluator
from .thing_evaluator import ThingCOCOEvaluator
from .token_evaluator import TokenSemanticsEvaluator

__all__ = ["build_evaluator"]

# The results that can be evaluated on a dataset, as the switches of MODEL.MASK_FORMER.TEST name
# them. The first is what models without switches are taken to put out.
_RESULTS = {
    "ade20k_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "cityscapes_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "cityscapes_sem_seg": ("SEMANTIC",),
    "coco": ("INSTANCE",),
    "coco_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "sem_seg": ("SEMANTIC",),
}

_MEASURES = {"SEMANTIC": "mIoU", "PANOPTIC": "panoptic quality", "INSTANCE": "AP"}

# The public MaskFormer and Mask2Former, imported beside this project, obey the same switches.
_WITH_SWITCHES = {"MaskFormerSegmentor", "MaskFormer"}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build what measures a model on a dataset.

    ==========================  ========================================================
    ``evaluator_type``          measured
    ==========================  ========================================================
    sem_seg,                    mIoU, by Detectron2
    cityscapes_sem_seg
    coco                        box and mask AP, by Detectron2
    coco_panoptic_seg,          panoptic quality; mIoU where records have label maps of
    ade20k_panoptic_seg,        the model's classes; box and mask AP of the things where
    cityscapes_panoptic_seg     the metadata have a ``json_file``
    ==========================  ========================================================

    Of a mask classifier only those results are measured that MODEL.MASK_FORMER.TEST switches on
    (SEMANTIC_ON, PANOPTIC_ON, INSTANCE_ON); which of them the dataset cannot serve, and why, is
    logged. Other models are taken to put out ``instances`` for "coco" and ``sem_seg`` elsewhere.
    ``cfg.TEST.TOKENS.ENABLED`` adds the token metrics to any.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        dataset_name: a registered dataset.
        output_folder: where results are written; None stands for OUTPUT_DIR/inference.

    Raises:
        ValueError: if the metadata's ``evaluator_type`` is missing or not a known one; if nothing
            that the model puts out can be measured on this dataset; or if a record lacks the ground
            truth of what is to be measured.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _RESULTS:
        raise ValueError(
            f"dataset {dataset_name} has evaluator_type {evaluator_type!r}, known are "
            f"{sorted(_RESULTS)}; set it with "
            f'MetadataCatalog.get("{dataset_name}").set(evaluator_type=...)'
        )
    evaluators = _task_evaluators(cfg, dataset_name, evaluator_type, output_folder)
    if cfg.TEST.TOKENS.ENABLED:
        evaluators.append(TokenSemanticsEvaluator(dataset_name, output_dir=output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _task_evaluators(
    cfg: CfgNode, dataset_name: str, evaluator_type: str, output_folder: str
) -> list[DatasetEvaluator]:
    possible = _RESULTS[evaluator_type]
    results, is_panoptic = possible[:1], len(possible) > 1
    if _has_switches(cfg):
        wanted = [each for each in _MEASURES if cfg.MODEL.MASK_FORMER.TEST[f"{each}_ON"]]
        results = [each for each in wanted if each in possible]
        if not results:
            keys = " or ".join(f"{each}_ON" for each in possible)
            raise ValueError(
                f"there is nothing to evaluate on {dataset_name}, whose evaluator_type is "
                f"{evaluator_type!r}: set {keys} of MODEL.MASK_FORMER.TEST to True"
            )
        missing = {
            each: f"its evaluator_type is {evaluator_type!r}"
            for each in wanted
            if each not in possible
        }
        if is_panoptic:
            missing.update(_missing_ground_truth(cfg, dataset_name, results))
        results = [each for each in results if each not in missing]
        why = " and ".join(f"{_MEASURES[each]}, since {reason}" for each, reason in missing.items())
        if not results:
            raise ValueError(f"the dataset {dataset_name} cannot serve to measure {why}")
        if missing:
            logging.getLogger(__name__).info(f"Not measured on {dataset_name}: {why}")

    evaluators: dict[str, type[DatasetEvaluator]] = {
        "SEMANTIC": CheckedSemSegEvaluator,
        "PANOPTIC": PanopticQualityEvaluator,
        "INSTANCE": ThingCOCOEvaluator if is_panoptic else COCOEvaluator,
    }
    return [evaluators[each](dataset_name, output_dir=output_folder) for each in results]


def _has_switches(cfg: CfgNode) -> bool:
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return False
    meta_arch = META_ARCH_REGISTRY.get(name)
    return any(each.__name__ in _WITH_SWITCHES for each in getattr(meta_arch, "__mro__", ()))


def _missing_ground_truth(
    cfg: CfgNode, dataset_name: str, results: list[str]
) -> dict[str, str]:
    """Of the results, those that a panoptic dataset has no ground truth for beside segments."""
    metadata = MetadataCatalog.get(dataset_name)
    missing = {}
    if "SEMANTIC" in results:
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        found = len(metadata.get("stuff_classes", ()))
        if not all("sem_seg_file_name" in each for each in DatasetCatalog.get(dataset_name)):
            missing["SEMANTIC"] = "there are records without sem_seg_file_name"
        elif found != num_classes:
            # In Detectron2's "separated" datasets all things are one class of the label maps.
            missing["SEMANTIC"] = (
                f"its label maps have {found} classes and the model has {num_classes}"
            )
    if "INSTANCE" in results and metadata.get("json_file") is None:
        missing["INSTANCE"] = "its metadata have no json_file"
    return missing
