"""The evaluators of a dataset: one for each result that the model puts out and it can measure."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from ..data.loading import load_dataset
from ..data.truth.records import has_classes
from ..modeling.layers.checks import find_registered
from ..modeling.outputs import RESULTS, Outputs, outputs_of
from .cityscapes_evaluator import CityscapesMeanIoUEvaluator
from .coco_evaluator import FastCOCOEvaluator, ThingCOCOEvaluator
from .image_iou import ImageIoUEvaluator
from .panoptic_evaluator import PanopticQualityEvaluator
from .sem_seg_evaluator import MeanIoUEvaluator
from .token_evaluator import TokenSemanticsEvaluator

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Registry of further evaluators, by the names in ``TEST.EVALUATORS``. An entry is called with the
name of a dataset and ``output_dir``, and returns a ``DatasetEvaluator``. A class with a method
``from_config`` is built by it, and the config comes first.
"""
EVALUATOR_REGISTRY.register(ImageIoUEvaluator)

_PANOPTIC = {
    "semantic": MeanIoUEvaluator,
    "panoptic": PanopticQualityEvaluator,
    "instance": ThingCOCOEvaluator,
}
# ``evaluator_type`` of a dataset -> evaluator of each result that it can serve to measure. Of a
# model that declares nothing, the first result is measured.
_EVALUATORS: dict[str, dict[str, type[DatasetEvaluator]]] = {
    "ade20k_panoptic_seg": _PANOPTIC,
    "cityscapes_panoptic_seg": _PANOPTIC,
    "cityscapes_sem_seg": {"semantic": CityscapesMeanIoUEvaluator},
    "coco": {"instance": FastCOCOEvaluator},
    "coco_panoptic_seg": _PANOPTIC,
    "sem_seg": {"semantic": MeanIoUEvaluator},
}
MEASURES = {"semantic": "mIoU", "panoptic": "panoptic quality", "instance": "AP"}


def declared_outputs(cfg: CfgNode) -> Outputs | None:
    """What the config's meta-architecture declares to put out; None if it is unknown."""
    name = cfg.MODEL.META_ARCHITECTURE
    return outputs_of(META_ARCH_REGISTRY.get(name)) if name in META_ARCH_REGISTRY else None


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

    It measures those results that the meta-architecture declares to put out
    (:mod:`sgr.modeling.outputs`). It logs which of them the dataset cannot serve, and why. For a
    meta-architecture that declares nothing it measures ``instances`` on "coco" and ``sem_seg``
    elsewhere.

    ``cfg.TEST.BOUNDARY_IOU.ENABLED`` adds boundary IoU to mIoU.

    ``cfg.TEST.TOKENS.ENABLED`` adds the token metrics. They need nothing but tokens: where the
    dataset can measure no result of the model, they are measured alone, with a warning. So a
    semantic model has S_I and D_I on "coco". ``cfg.TEST.EVALUATORS`` adds evaluators of
    :data:`EVALUATOR_REGISTRY`. They too may be all that is measured.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        dataset_name: a registered dataset. Datasets with panoptic records are loaded.
        output_folder: where results are written; None means OUTPUT_DIR/inference, and a folder of
            the dataset's name in it where DATASETS.TEST has several.

    Raises:
        ValueError: if the metadata's ``evaluator_type`` is missing or unknown; if nothing of the
            model can be measured on this dataset; if a record lacks the ground truth of what is
            to be measured; if TEST.CENTER_CROP_SIZE is set and panoptic quality or AP is to be
            measured, whose ground truth is that of whole images; or if TEST.EVALUATORS has an
            unknown name.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:  # All of them write files of the same names.
            output_folder = os.path.join(output_folder, dataset_name)
    possible = _possible(dataset_name)
    outputs = declared_outputs(cfg)
    asked = tuple(possible)[:1] if outputs is None else outputs.switched_on(cfg)
    _check_center_crop(cfg, dataset_name, [result for result in asked if result in possible])

    if outputs is None:
        results = list(asked)
    else:
        results, missing = measurable(cfg, dataset_name, asked)
        _report(cfg, dataset_name, results, missing)
    boundary = cfg.TEST.BOUNDARY_IOU
    more = {"semantic": {"boundary_ratio": boundary.DILATION_RATIO}} if boundary.ENABLED else {}
    evaluators = [
        possible[result](dataset_name, output_dir=output_folder, **more.get(result, {}))
        for result in results
    ]
    if cfg.TEST.TOKENS.ENABLED:
        evaluators.append(TokenSemanticsEvaluator(dataset_name, output_dir=output_folder))
    for name in cfg.TEST.EVALUATORS:
        build = find_registered(EVALUATOR_REGISTRY, name, "an entry of TEST.EVALUATORS")
        if hasattr(build, "from_config"):
            build = partial(build.from_config, cfg)
        evaluators.append(build(dataset_name, output_dir=output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def measurable(
    cfg: CfgNode, dataset_name: str, results: Iterable[str]
) -> tuple[list[str], dict[str, str]]:
    """Those of a model's ``results`` that a dataset can serve to measure, and why not the others.

    A dataset is loaded only if its kind allows a result and its records decide.

    Raises:
        ValueError: if the ``evaluator_type`` is missing or unknown.
    """
    possible = _possible(dataset_name)
    missing = {
        result: f"its evaluator_type is {_evaluator_type(dataset_name)!r}"
        for result in results
        if result not in possible
    }
    left = [result for result in results if result in possible]
    if left and possible is _PANOPTIC:
        missing.update(_missing_ground_truth(cfg, dataset_name, left))
    return [result for result in left if result not in missing], missing


def _evaluator_type(dataset_name: str) -> str | None:
    return MetadataCatalog.get(dataset_name).get("evaluator_type")


def _possible(dataset_name: str) -> dict[str, type[DatasetEvaluator]]:
    evaluator_type = _evaluator_type(dataset_name)
    if evaluator_type not in _EVALUATORS:
        raise ValueError(
            f"dataset {dataset_name} has evaluator_type {evaluator_type!r}, known are "
            f"{sorted(_EVALUATORS)}; set it with "
            f'MetadataCatalog.get("{dataset_name}").set(evaluator_type=...)'
        )
    return _EVALUATORS[evaluator_type]


def _check_center_crop(cfg: CfgNode, dataset_name: str, results: list[str]) -> None:
    """Raise a ValueError if one of the results needs whole images, and squares are tested."""
    side = cfg.TEST.CENTER_CROP_SIZE
    unfit = [result for result in results if result != "semantic"]
    if not side or not unfit:
        return
    advice = "TEST.CENTER_CROP_SIZE to 0"
    outputs = declared_outputs(cfg)
    if outputs is not None and outputs.switchable:
        advice += f", or {_switches(unfit, 'and')} to False"
    raise ValueError(
        f"with TEST.CENTER_CROP_SIZE {side} only mIoU and the token metrics can be measured, and "
        f"not {' and '.join(MEASURES[result] for result in unfit)} on {dataset_name}; set {advice}"
    )


def _report(cfg: CfgNode, dataset_name: str, results: list[str], missing: dict[str, str]) -> None:
    """Say what is not measured; raise a ValueError if nothing is, tokens and the like included."""
    logger = logging.getLogger(__name__)
    possible = _possible(dataset_name)
    reasons = " and ".join(f"{MEASURES[result]}, since {why}" for result, why in missing.items())
    if results:
        if missing:
            logger.info(f"Not measured on {dataset_name}: {reasons}")
        return

    advice = ""
    if any(result in possible for result in missing):
        message = f"the dataset {dataset_name} cannot serve to measure {reasons}"
    else:
        keys = " or ".join(RESULTS[result] for result in possible)
        message = (
            f"there is nothing to evaluate on {dataset_name}, whose evaluator_type is "
            f"{_evaluator_type(dataset_name)!r}: {cfg.MODEL.META_ARCHITECTURE} puts out no {keys}"
        )
        outputs = declared_outputs(cfg)
        if outputs is not None and outputs.switchable:
            advice = f"; set {_switches(possible, 'or')} to True"
    if not (cfg.TEST.TOKENS.ENABLED or cfg.TEST.EVALUATORS):
        message += f"{advice}. TEST.TOKENS.ENABLED True measures a model's tokens alone"
        raise ValueError(message)
    measures = " or ".join(MEASURES[result] for result in possible)
    measured = ["the token metrics"] if cfg.TEST.TOKENS.ENABLED else []
    if cfg.TEST.EVALUATORS:
        measured.append(f"the metrics of {', '.join(cfg.TEST.EVALUATORS)}")
    logger.warning(f"Only {' and '.join(measured)} are measured, and no {measures}: {message}")


def _switches(results: Iterable[str], conjunction: str) -> str:
    keys = f" {conjunction} ".join(f"{result.upper()}_ON" for result in results)
    return f"{keys} of MODEL.MASK_FORMER.TEST"


def _missing_ground_truth(
    cfg: CfgNode, dataset_name: str, results: Iterable[str]
) -> dict[str, str]:
    """Those of the results that a panoptic dataset has no ground truth for, and why."""
    records = load_dataset(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    missing = {}
    if "semantic" in results:
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        found = len(metadata.get("stuff_classes", ()))
        if not all(has_classes(record) for record in records):
            missing["semantic"] = (
                "there are records without sem_seg_file_name, or pan_seg_file_name and "
                "segments_info"
            )
        elif found != num_classes:
            # In Detectron2's "separated" datasets all things are one class of the label maps.
            has_maps = any("sem_seg_file_name" in record for record in records)
            what = "label maps" if has_maps else "segments"
            missing["semantic"] = f"its {what} have {found} classes and the model has {num_classes}"
    if "instance" in results:
        json_file = metadata.get("json_file")
        if json_file is None:
            missing["instance"] = "its metadata have no json_file"
        elif "://" not in json_file and not os.path.exists(json_file):
            missing["instance"] = f"its json_file {json_file} does not exist"
    return missing
