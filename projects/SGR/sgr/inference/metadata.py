"""Names and colours of the classes in a model's output."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from torch import nn

from ..checkpoints.model_folder import read_description
from ..data.datasets.classes import number_names
from ..engine.config_check import flat
from ..modeling.outputs import outputs_of, thing_numbers
from ..visualization import class_colors, distinct_colors


def dataset_metadata(cfg: CfgNode) -> Metadata:
    """Names and colours of a model's classes: of its folder, or of the first of ``DATASETS.TEST``.

    MODEL.WEIGHTS may be a model folder, which has them. A folder of a model with another number of
    classes, from which a training has started, does not count.

    Some datasets learn the names of their classes when they are loaded. So a dataset without names
    is loaded, which takes a while if it is large. If its files are missing, the metadata may stay
    without names; this is no error.
    """
    if os.path.isdir(cfg.MODEL.WEIGHTS):
        description = read_description(cfg.MODEL.WEIGHTS)
        if description["num_classes"].items() <= dict(flat(cfg)).items():
            return _folder_metadata(cfg.MODEL.WEIGHTS, description["classes"])
    name = next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        return Metadata(name="no dataset")
    metadata = MetadataCatalog.get(name)
    if not (metadata.get("stuff_classes") or metadata.get("thing_classes")):
        try:
            DatasetCatalog.get(name)
        except Exception as error:  # whatever a dataset's own code may raise
            reason = str(error).partition("\n")[0]
            logging.getLogger(__name__).warning(
                "The classes of %s are not known and shown as numbers: %s", name, reason
            )
    return metadata


def _folder_metadata(folder: str, classes: dict[str, Any]) -> Metadata:
    known = {key: value for key, value in classes.items() if key != "things"}
    if "things" in classes:
        known["thing_dataset_id_to_contiguous_id"] = {
            number: number for number in classes["things"]
        }
    return Metadata(name=folder, **known)


def numbers_of_classes(model: nn.Module, cfg: CfgNode) -> dict[str, int]:
    """Key of the config -> number of classes, of the heads that a model has.

    Of models without a head of Detectron2's names, these are all such keys.
    """
    outputs = outputs_of(model)
    if outputs is not None and outputs.num_classes(model) is not None:
        heads = {"sem_seg_head": "SEM_SEG_HEAD"}
    else:
        heads = {"sem_seg_head": "SEM_SEG_HEAD", "roi_heads": "ROI_HEADS", "head": "RETINANET"}
    parts = [part for head, part in heads.items() if hasattr(model, head)]
    if not parts:
        groups = {key: part for key, part in cfg.MODEL.items() if isinstance(part, CfgNode)}
        parts = [key for key, part in groups.items() if "NUM_CLASSES" in part]
    return {f"MODEL.{part}.NUM_CLASSES": cfg.MODEL[part].NUM_CLASSES for part in parts}


def model_metadata(model: nn.Module, cfg: CfgNode) -> Metadata:
    """Names and colours of the classes in a model's outputs: of its folder, or of its dataset.

    See :func:`dataset_metadata` and :func:`output_metadata`.
    """
    outputs = outputs_of(model)
    return output_metadata(
        dataset_metadata(cfg),
        max(numbers_of_classes(model, cfg).values()),
        outputs.num_classes(model) if outputs else None,
    )


def output_metadata(
    metadata: Metadata, num_classes: int, num_joint_classes: int | None = None
) -> Metadata:
    """Complete a dataset's metadata: every class of a model gets a name and a colour.

    Without them, Detectron2's ``Visualizer`` fails or picks random colours.

    Args:
        metadata: of the dataset; they stay unchanged.
        num_classes: number of classes of the model. Classes without a name are called by their
            number.
        num_joint_classes: number of classes of a model with one numbering for things and stuff,
            such as a mask classifier; None for detectors, which number the things alone. If there
            are as many ``stuff_classes``, these name the things too.

    Returns:
        Metadata with ``stuff_classes`` and ``stuff_colors`` (for semantic maps and segments of
        stuff), and ``thing_classes`` and ``thing_colors`` (for instances and segments of things).
        If the dataset has only one of the two kinds, it stands for both. With one numbering, the
        values of ``thing_dataset_id_to_contiguous_id`` are the things in it.
    """
    stuff, things = (metadata.get(f"{kind}_classes") for kind in ("stuff", "thing"))
    joint = bool(stuff) and len(stuff) == num_joint_classes
    sources = {
        "stuff": "stuff" if stuff else "thing",
        "thing": "stuff" if joint or not things else "thing",
    }
    complete = metadata.as_dict()
    if joint and (numbers := thing_numbers(metadata)) is not None:
        complete["thing_dataset_id_to_contiguous_id"] = {number: number for number in numbers}
    for kind, source in sources.items():
        names = list(metadata.get(f"{source}_classes") or [])
        known = class_colors(metadata, len(names), f"{source}_colors")
        names += number_names(num_classes)[len(names) :]
        more = distinct_colors(len(names))[len(known) :]
        complete[f"{kind}_classes"] = names
        complete[f"{kind}_colors"] = np.concatenate([known, more]).tolist()
    return Metadata(**complete)
