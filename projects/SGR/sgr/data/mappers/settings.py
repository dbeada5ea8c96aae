"""The arguments of mappers, taken from a config and from the metadata of its training data."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

# Arguments that a config sets, by the keys that messages name beside them.
_KEYS = {"ignore_value": " (MODEL.SEM_SEG_HEAD.IGNORE_VALUE)"}


def check_for_training(mapper_class: type, is_train: bool) -> None:
    """Raise ValueError if ``is_train`` is False: our mappers are for training."""
    if not is_train:
        raise ValueError(
            f"{mapper_class.__name__} is for training; for testing use "
            "detectron2.data.DatasetMapper(cfg, is_train=False)"
        )


def component_options(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of a mapper that concern components."""
    return {
        "with_components": cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0,
        "max_components": cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE,
        "min_area_ratio": cfg.INPUT.COMPONENTS.MIN_AREA_RATIO,
        "kernel_size": cfg.INPUT.COMPONENTS.KERNEL_SIZE,
    }


def check_ignored(num_classes: int, **values: int) -> None:
    """Raise ValueError if one of the named ``values`` is the label of a class."""
    for name, value in values.items():
        if 0 <= value < num_classes:
            raise ValueError(
                f"{name}{_KEYS.get(name, '')} is {value}, which is one of the {num_classes} "
                f"classes; it must be negative or at least {num_classes}"
            )


def labels_of_training_data(
    cfg: CfgNode, key: str = "stuff_classes", head: str = "SEM_SEG_HEAD"
) -> tuple[int, int]:
    """Number of classes and ignore label of the datasets in ``cfg.DATASETS.TRAIN``.

    They come from the metadata, or from the config if the metadata do not have them. Load the data
    before: some datasets, such as those of Detectron2's ``register_coco_instances``, get their
    classes when they are loaded.

    Args:
        key: the list of class names in the metadata.
        head: the node under MODEL whose NUM_CLASSES counts.

    Raises:
        ValueError: a dataset has more classes than the head, or the datasets differ.
    """
    most, ignore_value = cfg.MODEL[head].NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    labels: dict[str, tuple[int, int]] = {}
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        classes = metadata.get(key)
        num_classes = most if classes is None else len(classes)
        if num_classes > most:
            raise ValueError(
                f"MODEL.{head}.NUM_CLASSES is {most}, but the dataset {name} has {num_classes} "
                "classes"
            )
        labels[name] = (num_classes, metadata.get("ignore_label", ignore_value))
    if len(set(labels.values())) > 1:
        raise ValueError(
            "the datasets of DATASETS.TRAIN differ in (number of classes, ignore label), so one "
            f"mapper cannot serve them all: {labels}"
        )
    return next(iter(labels.values()), (most, ignore_value))
