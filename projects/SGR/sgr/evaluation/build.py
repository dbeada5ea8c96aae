"""The evaluators of a dataset, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import META_ARCH_REGISTRY

from ..data.augmentations.center_crop import CentralSquare
from ..data.truth.coco_file import explain_coco_errors
from ..data.truth.records import has_classes
from .cityscapes_evaluator import CityscapesMeanIoUEvaluator
from .coco_evaluator import FastCOCOEvaluator
from .panoptic_evaluator import PanopticQualityEvaluator
from .sem_seg_evaluator import MeanIoUEvaluator
from .thing_evaluator import ThingCOCOEvaluator
from .token_evaluator import TokenSemanticsEvaluator

__all__ = ["build_evaluator", "check_center_crop", "why_not_semantic"]

# The results that can be evaluated on a dataset, as the switches of MODEL.MASK_FORMER.TEST name
# them. The first is what unknown models are taken to put out.
_RESULTS = {
    "ade20k_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "cityscapes_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "cityscapes_sem_seg": ("SEMANTIC",),
    "coco": ("INSTANCE",),
    "coco_panoptic_seg": ("SEMANTIC", "PANOPTIC", "INSTANCE"),
    "sem_seg": ("SEMANTIC",),
}

_MEASURES = {"SEMANTIC": "mIoU", "PANOPTIC": "panoptic quality", "INSTANCE": "AP"}
_OUTPUTS = {"SEMANTIC": "sem_seg", "PANOPTIC": "panoptic_seg", "INSTANCE": "instances"}

# The public MaskFormer and Mask2Former, imported beside this project, obey the same switches.
_WITH_SWITCHES = {"MaskFormerSegmentor", "MaskFormer"}

# What Detectron2's meta-architectures put out, and with them their subclasses. The panoptic results
# of PanopticFPN are for Detectron2's "separated" datasets, which we do not evaluate.
_PUT_OUT = {
    "SemanticSegmentor": ("SEMANTIC",),
    "PanopticFPN": ("SEMANTIC", "INSTANCE"),
    "GeneralizedRCNN": ("INSTANCE",),
    "DenseDetector": ("INSTANCE",),
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build what measures a model on a dataset.

    ==========================  ========================================================
    ``evaluator_type``          measured
    ==========================  ========================================================
    sem_seg                     mIoU, accuracy, confusion matrix
    cityscapes_sem_seg          the same; the benchmark's IoU and iIoU of classes and
                                categories; predictions for its server
    coco                        box and mask AP
    coco_panoptic_seg,          panoptic quality; as of sem_seg, where records have label
    ade20k_panoptic_seg,        maps or segments of the model's classes; box and mask AP
    cityscapes_panoptic_seg     of the things where the metadata have a ``json_file``
    ==========================  ========================================================

    Of these, that is measured which the model puts out: Detectron2's detectors ``instances``, its
    SemanticSegmentor ``sem_seg``, a mask classifier what MODEL.MASK_FORMER.TEST switches on
    (SEMANTIC_ON, PANOPTIC_ON, INSTANCE_ON). What the dataset cannot serve, and why, is logged.
    Models of other kinds are taken to put out ``instances`` for "coco" and ``sem_seg`` elsewhere.

    ``cfg.TEST.TOKENS.ENABLED`` adds the token metrics to any. They need nothing but tokens of the
    model: where it puts out no result that the dataset can serve to measure, they are measured
    alone, with a warning. So a model for semantic segmentation can be evaluated on "coco" for its
    S_I and D_I, alone or beside its own dataset in DATASETS.TEST.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        dataset_name: a registered dataset.
        output_folder: where results are written; None stands for OUTPUT_DIR/inference, and for a
            folder of the dataset's name in it where DATASETS.TEST has several.

    Raises:
        ValueError: if the metadata's ``evaluator_type`` is missing or not a known one; if nothing
            of the model can be measured on this dataset; if a record lacks the ground truth of
            what is to be measured; or see :func:`check_center_crop`.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:  # All of them write files of the same names.
            output_folder = os.path.join(output_folder, dataset_name)
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _RESULTS:
        raise ValueError(
            f"dataset {dataset_name} has evaluator_type {evaluator_type!r}, known are "
            f"{sorted(_RESULTS)}; set it with "
            f'MetadataCatalog.get("{dataset_name}").set(evaluator_type=...)'
        )
    check_center_crop(cfg, [dataset_name])
    evaluators = _task_evaluators(cfg, dataset_name, evaluator_type, output_folder)
    if cfg.TEST.TOKENS.ENABLED:
        evaluators.append(TokenSemanticsEvaluator(dataset_name, output_dir=output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def check_center_crop(cfg: CfgNode, dataset_names: Iterable[str]) -> None:
    """Raise, before any work, if what TEST.CENTER_CROP_SIZE leaves of the images does not do.

    mIoU and the token metrics are measured on it. Panoptic quality and AP are not: their ground
    truth is that of whole images.

    Raises:
        ValueError: if the size is negative; or if panoptic quality or AP is to be measured on one
            of the datasets. Unknown values of ``evaluator_type`` are left to
            :func:`build_evaluator`.
    """
    side = cfg.TEST.CENTER_CROP_SIZE
    if side == 0:
        return
    CentralSquare(side)  # an error where it is negative
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        return  # nothing but mIoU is measured
    put_out = _results_of(cfg)
    for name in dataset_names:
        possible = _RESULTS.get(MetadataCatalog.get(name).get("evaluator_type"), ())
        measured = possible[:1] if put_out is None else put_out
        unfit = [each for each in measured if each in possible and each != "SEMANTIC"]
        if unfit:
            measures = " and ".join(_MEASURES[each] for each in unfit)
            advice = "TEST.CENTER_CROP_SIZE to 0"
            if _is_any(cfg, _WITH_SWITCHES):
                keys = " and ".join(f"{each}_ON" for each in unfit)
                advice += f", or {keys} of MODEL.MASK_FORMER.TEST to False"
            raise ValueError(
                f"with TEST.CENTER_CROP_SIZE {side} only mIoU and the token metrics can be "
                f"measured, and not {measures} on {name}; set {advice}"
            )


def why_not_semantic(cfg: CfgNode, dataset_name: str, *, load: bool = True) -> str | None:
    """Why ``sem_seg`` of the model cannot be measured on a dataset; None where nothing is wrong.

    Unknown values of ``evaluator_type`` are left to :func:`build_evaluator`, whose error is better.

    Args:
        cfg, dataset_name: as of :func:`build_evaluator`.
        load: look also at the records of panoptic datasets, which loads them. Else only at the
            metadata, as far as they are there before the dataset is loaded.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    possible = _RESULTS.get(evaluator_type, ("SEMANTIC",))
    if "SEMANTIC" not in possible:
        return f"its evaluator_type is {evaluator_type!r}"
    if len(possible) == 1:
        return None
    return _missing_ground_truth(cfg, dataset_name, ["SEMANTIC"], load=load).get("SEMANTIC")


def _task_evaluators(
    cfg: CfgNode, dataset_name: str, evaluator_type: str, output_folder: str
) -> list[DatasetEvaluator]:
    possible = _RESULTS[evaluator_type]
    is_panoptic = len(possible) > 1
    put_out = _results_of(cfg)
    if put_out is None:
        results = possible[:1]
    else:
        results = [each for each in put_out if each in possible]
        missing = {
            each: f"its evaluator_type is {evaluator_type!r}"
            for each in put_out
            if each not in possible
        }
        if is_panoptic:
            missing.update(_missing_ground_truth(cfg, dataset_name, results))
        results = [each for each in results if each not in missing]
        _report(cfg, dataset_name, evaluator_type, results, missing)

    is_cityscapes = evaluator_type == "cityscapes_sem_seg"
    evaluators: dict[str, type[DatasetEvaluator]] = {
        "SEMANTIC": CityscapesMeanIoUEvaluator if is_cityscapes else MeanIoUEvaluator,
        "PANOPTIC": PanopticQualityEvaluator,
        "INSTANCE": ThingCOCOEvaluator if is_panoptic else FastCOCOEvaluator,
    }
    return [evaluators[each](dataset_name, output_dir=output_folder) for each in results]


def _report(
    cfg: CfgNode,
    dataset_name: str,
    evaluator_type: str,
    results: list[str],
    missing: dict[str, str],
) -> None:
    """Say what is not measured; an error if there are neither results nor tokens to measure."""
    logger = logging.getLogger(__name__)
    possible = _RESULTS[evaluator_type]
    reasons = " and ".join(f"{_MEASURES[each]}, since {why}" for each, why in missing.items())
    if results:
        if missing:
            logger.info(f"Not measured on {dataset_name}: {reasons}")
        return

    advice = ""
    if any(each in possible for each in missing):
        message = f"the dataset {dataset_name} cannot serve to measure {reasons}"
    else:
        outputs = " or ".join(_OUTPUTS[each] for each in possible)
        message = (
            f"there is nothing to evaluate on {dataset_name}, whose evaluator_type is "
            f"{evaluator_type!r}: {cfg.MODEL.META_ARCHITECTURE} puts out no {outputs}"
        )
        if _is_any(cfg, _WITH_SWITCHES):
            keys = " or ".join(f"{each}_ON" for each in possible)
            advice = f"; set {keys} of MODEL.MASK_FORMER.TEST to True"
    if not cfg.TEST.TOKENS.ENABLED:
        message += f"{advice}. TEST.TOKENS.ENABLED True measures a model's tokens alone"
        raise ValueError(message)
    measures = " or ".join(_MEASURES[each] for each in possible)
    logger.warning(f"Only the token metrics are measured, and no {measures}: {message}")


def _results_of(cfg: CfgNode) -> tuple[str, ...] | None:
    """What the model puts out; None where that is not known."""
    if _is_any(cfg, _WITH_SWITCHES):
        switches = cfg.MODEL.MASK_FORMER.TEST
        return tuple(each for each in _MEASURES if switches[f"{each}_ON"])
    return next((_PUT_OUT[name] for name in _class_names(cfg) if name in _PUT_OUT), None)


def _is_any(cfg: CfgNode, names: set[str]) -> bool:
    return not names.isdisjoint(_class_names(cfg))


def _class_names(cfg: CfgNode) -> list[str]:
    """Names of the meta-architecture's class and its bases, the most special one first."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return []
    meta_arch = META_ARCH_REGISTRY.get(name)
    return [each.__name__ for each in getattr(meta_arch, "__mro__", ())]


def _missing_ground_truth(
    cfg: CfgNode, dataset_name: str, results: list[str], *, load: bool = True
) -> dict[str, str]:
    """Of the results, those that a panoptic dataset has no ground truth for.

    Without ``load``, those of which the metadata tell so before the dataset is loaded.
    """
    metadata = MetadataCatalog.get(dataset_name)
    missing = {}
    if "SEMANTIC" in results:
        records = []
        if load:  # first, as some fill the metadata
            with explain_coco_errors([dataset_name]):
                records = DatasetCatalog.get(dataset_name)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        found = len(metadata.get("stuff_classes", ()))
        if not all(has_classes(each) for each in records):
            missing["SEMANTIC"] = (
                "there are records without sem_seg_file_name, or pan_seg_file_name and "
                "segments_info"
            )
        elif found != num_classes and (found or load):
            # In Detectron2's "separated" datasets all things are one class of the label maps.
            has_maps = not records or any("sem_seg_file_name" in each for each in records)
            what = "label maps" if has_maps else "segments"
            missing["SEMANTIC"] = f"its {what} have {found} classes and the model has {num_classes}"
    if "INSTANCE" in results:
        json_file = metadata.get("json_file")
        if json_file is None:
            missing["INSTANCE"] = "its metadata have no json_file"
        elif "://" not in json_file and not os.path.exists(json_file):
            missing["INSTANCE"] = f"its json_file {json_file} does not exist"
    return missing
