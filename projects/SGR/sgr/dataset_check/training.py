"""Checks whether a config can train on a dataset, with the help of its mapper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.faults import Fault, FaultKind
from ..data.mappers import build_mapper
from .options import TRUTH_KEYS, CheckOptions


def training_mapper(name: str, cfg: CfgNode) -> Callable[[dict], dict]:
    """Build the mapper of a training with ``cfg`` on a dataset that has been loaded.

    Raises:
        ValueError: it cannot be built, for example because the model has fewer classes than the
            dataset.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)
    if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0:  # 0 means the number of the dataset
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(MetadataCatalog.get(name).get("stuff_classes", ()))
    try:
        return build_mapper(cfg)
    except (AssertionError, KeyError) as error:  # Detectron2 raises these for wrong values
        raise ValueError(f"{type(error).__name__}: {error}") from error


def training_faults(
    mapper: Any,
    records: Sequence[dict],
    options: CheckOptions,
    cfg: CfgNode,
    *,
    is_trained_on: bool,
) -> tuple[list[Fault], list[str]]:
    """Check whether a config can train on a dataset, or be evaluated on it. It reads no file.

    Mappers of other projects are not checked, because their needs are not known.

    Args:
        mapper: from :func:`training_mapper`.
        is_trained_on: whether the dataset is for training; if not, it is for evaluation only.

    Returns:
        Faults: the mapper learns from another kind of ground truth; it refuses annotations; or the
        model has another number of classes, where mIoU is measured. And warnings: the model has
        more classes than there are categories of instances.
    """
    needed = getattr(mapper, "truth_key", None)
    if needed is None:
        return [], []
    faults, warnings = [], []
    if is_trained_on and needed not in options.truth:
        has = ", ".join(f"{TRUTH_KEYS[key]} ({key})" for key in options.truth)
        message = (
            f"INPUT.DATASET_MAPPER_NAME {cfg.INPUT.DATASET_MAPPER_NAME!r} learns from "
            f"{TRUTH_KEYS[needed]} ({needed}), but the records have {has}"
        )
        return [Fault(message, FaultKind.TRAINING)], []
    if is_trained_on and hasattr(mapper, "check_records"):
        try:
            mapper.check_records([record for record in records if needed in record])
        except ValueError as error:
            faults.append(Fault(str(error), FaultKind.TRAINING))
    of_things = needed == "annotations"
    key, names = "stuff_classes", options.class_names
    if of_things:
        key, names = "thing_classes", options.thing_names if needed in options.truth else ()
    elif options.truth == ("annotations",):
        names = ()
    expected = cfg.MODEL[mapper.head].NUM_CLASSES
    if names and expected and len(names) != expected:
        message = (
            f"MODEL.{mapper.head}.NUM_CLASSES is {expected}, but the dataset has {len(names)} {key}"
        )
        if of_things:
            warnings.append(f"{message}: the others are never learned")
        else:
            faults.append(Fault(f"{message}; set it to their number", FaultKind.CLASSES))
    return faults, warnings
