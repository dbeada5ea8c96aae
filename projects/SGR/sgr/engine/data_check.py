"""What can be known of the data before a training or an evaluation: classes, truth and files."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.classes import are_numbers
from ..data.faults import FaultKind, list_faults_by_kind
from ..data.threads import available_cores
from ..dataset_check import Report, check_records, options_for, spread
from ..evaluation.build import declared_outputs, measurable

_KEYS = ("stuff_classes", "thing_classes")


def check_training_data(
    cfg: CfgNode, mapper: Callable[[dict], dict], records: Sequence[dict]
) -> None:
    """Check that the records of DATASETS.TRAIN fit the mapper, the sampler and the model.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        mapper: the mapper of the training. Of other projects' mappers only the sampler is checked.
        records: all records of the training, loaded.

    Raises:
        ValueError: the sampler needs instances and the records have none; the model has another
            number of classes than a dataset with label maps or segments; or the model learns the
            categories of instances, and is to be measured on label maps of other classes.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "RepeatFactorTrainingSampler" and any("annotations" not in r for r in records):
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {sampler!r}, which repeats images by the categories of "
            f"their instances, but the records of {', '.join(cfg.DATASETS.TRAIN)} have no "
            "annotations; set it to 'TrainingSampler'"
        )
    truth_key = getattr(mapper, "truth_key", None)
    if truth_key is None:
        return
    if truth_key != "annotations":
        for name in cfg.DATASETS.TRAIN:
            _check_number(cfg, name)
    elif getattr(mapper, "head", "") == "SEM_SEG_HEAD":
        _check_things_are_measured(cfg)


def _check_number(cfg: CfgNode, dataset: str) -> None:
    number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = MetadataCatalog.get(dataset).get("stuff_classes")
    if names is not None and len(names) != number:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {number}, but the dataset {dataset} has "
            f"{len(names)} classes; set it to their number"
        )


def _is_measured_by_class(cfg: CfgNode, dataset: str) -> bool:
    """Whether the mIoU of the model is to be measured on a dataset, in its classes."""
    outputs = declared_outputs(cfg)
    if outputs is None or dataset not in DatasetCatalog:
        return False
    return "semantic" in measurable(cfg, dataset, outputs.switched_on(cfg))[0]


def _check_things_are_measured(cfg: CfgNode) -> None:
    """Refuse to measure a model of things on label maps of other classes."""
    for train in cfg.DATASETS.TRAIN[:1]:
        things = MetadataCatalog.get(train).get("thing_classes")
        for test in cfg.DATASETS.TEST:
            classes = MetadataCatalog.get(test).get("stuff_classes")
            differ = things and classes and list(things) != list(classes)
            if differ and _is_measured_by_class(cfg, test):
                raise ValueError(
                    f"INPUT.DATASET_MAPPER_NAME {cfg.INPUT.DATASET_MAPPER_NAME!r} teaches the "
                    f"{len(things)} categories of the instances of {train} ({things[0]!r}, ...), "
                    f"but mIoU on {test} is that of the {len(classes)} classes of its label maps "
                    f"({classes[0]!r}, ...); take 'mask_former_semantic_concept', or set "
                    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON to False and INSTANCE_ON to True"
                )


def class_names(cfg: CfgNode) -> dict[str, list[str]]:
    """The names of the classes that a model learns, by the key of the metadata, for checkpoints.

    Call it after DATASETS.TRAIN are loaded: some get their metadata then.
    """
    names: dict[str, list[str]] = {}
    for dataset in cfg.DATASETS.TRAIN:
        for key, found in _names_of(dataset).items():
            names.setdefault(key, found)
    return names


def check_class_names(cfg: CfgNode, saved: Mapping[str, Sequence[str]] | None = None) -> None:
    """Check that a number means the same class in all of DATASETS.TRAIN and TEST.

    Names are compared in lists of the same length. Case, and what is neither letter nor digit, do
    not count. Datasets on which mIoU is measured must have as many classes as the model.

    Args:
        cfg: the config; its datasets are loaded, or have their metadata already.
        saved: :func:`class_names` of a checkpoint, which are compared too.

    Raises:
        ValueError: a class has another name (the message has the first one), or the number of
            classes differs.
    """
    for dataset in cfg.DATASETS.TEST:
        if _is_measured_by_class(cfg, dataset):
            _check_number(cfg, dataset)
    known: dict[str, tuple[str, list[str]]] = {
        key: ("the checkpoint", list(names)) for key, names in (saved or {}).items()
    }
    for dataset in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        for key, names in _names_of(dataset).items():
            source, expected = known.setdefault(key, (dataset, names))
            if len(names) != len(expected):
                continue
            for number, (one, other) in enumerate(zip(expected, names)):
                if _plain(one) != _plain(other):
                    raise ValueError(
                        f"class {number} is {one!r} in {source}, but {other!r} in {dataset} "
                        f"({key}): a model of the one is wrong for the other; number the classes "
                        "of both alike or, if the two names mean the same, write them alike"
                    )


def _names_of(dataset: str) -> dict[str, list[str]]:
    if dataset not in DatasetCatalog:
        return {}
    metadata = MetadataCatalog.get(dataset)
    found = {key: list(metadata.get(key) or ()) for key in _KEYS}
    return {key: names for key, names in found.items() if not are_numbers(names)}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def check_test_files(cfg: CfgNode, datasets: Mapping[str, Any]) -> None:
    """Read and check TEST.CHECK_FILES images of each test set, and their ground truth.

    Args:
        cfg: the config.
        datasets: the records of the test sets, by name.

    Raises:
        ValueError: there are faults, such as a damaged image or a label that is no class.
    """
    for name, records in datasets.items():
        if not cfg.TEST.CHECK_FILES or not isinstance(records, list):
            continue
        try:
            options = options_for(records, MetadataCatalog.get(name), cfg)
        except ValueError:  # without ground truth or names of classes: for tokens, or foreign
            continue
        chosen = [records[index] for index in spread(cfg.TEST.CHECK_FILES, len(records))]
        report = Report(options, name, num_records=len(records))
        check_records(chosen, report, workers=available_cores())
        faults = [
            fault
            for fault in report.faults
            if fault.kind is not FaultKind.EMPTY or len(chosen) == len(records)
        ]
        logger = logging.getLogger(__name__)
        logger.info(f"{len(chosen)} of {len(records)} images of {name} are checked")
        if faults:
            raise ValueError(
                f"{name} has faults:\n{list_faults_by_kind(faults)}\nMend them, "
                f"or set TEST.CHECK_FILES to 0; python tools/check_dataset.py "
                f"{name} looks at all images"
            )


def check_measured(results: Mapping[str, Any], name: str = "") -> None:
    """Check that each of the results of an evaluation has a number.

    Args:
        results: metrics by task, or by dataset and task.
        name: of ``results``, for the message.

    Raises:
        ValueError: all metrics of a task are nan, or it has none.
    """
    for key, values in results.items():
        full_name = f"{name} {key}".strip()
        if isinstance(values, Mapping) and any(isinstance(v, Mapping) for v in values.values()):
            check_measured(values, full_name)
        elif isinstance(values, Mapping):
            metrics = []
            for value in values.values():
                with suppress(TypeError, ValueError):  # None, or what is no number
                    metrics.append(float(value))
            if all(map(math.isnan, metrics)):
                raise ValueError(
                    f"{full_name}: nothing could be measured, since no image has ground truth that "
                    "counts; look at the test set with tools/check_dataset.py"
                )
