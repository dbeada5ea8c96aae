"""What the classes of a model's outputs are called, and their colours."""

from __future__ import annotations

import logging

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from ..visualization import class_colors, distinct_colors

__all__ = ["dataset_metadata", "output_metadata"]


def dataset_metadata(cfg: CfgNode) -> Metadata:
    """Names and colours of the classes of the first dataset in ``DATASETS.TEST``.

    Metadata that have no names yet may get them as the data are loaded, so this is tried, which
    takes a while where they are large. A dataset that is not there is no error: what is known of it
    is returned, which may be nothing.
    """
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


def output_metadata(
    metadata: Metadata, num_classes: int, num_joint_classes: int | None = None
) -> Metadata:
    """A dataset's metadata with names and colours for every number that a model puts out.

    Detectron2's ``Visualizer`` fails, or picks random colours, where they are missing.

    Args:
        metadata: of the dataset, which stay as they are.
        num_classes: where fewer are known, the further ones are called by their number.
        num_joint_classes: classes of a model that numbers things and stuff together, as mask
            classifiers do; None for detectors, which number things alone. Where ``stuff_classes``
            names as many, they name things too.

    Returns:
        The same with ``stuff_classes`` and ``stuff_colors`` for semantic maps and segments of
        stuff, ``thing_classes`` and ``thing_colors`` for instances and segments of things. Each
        stands in for the other where the dataset has only one of them.
    """
    stuff, things = (metadata.get(f"{kind}_classes") for kind in ("stuff", "thing"))
    joint = bool(stuff) and len(stuff) == num_joint_classes
    sources = {
        "stuff": "stuff" if stuff else "thing",
        "thing": "stuff" if joint or not things else "thing",
    }
    complete = metadata.as_dict()
    for kind, source in sources.items():
        names = list(metadata.get(f"{source}_classes") or [])
        known = class_colors(metadata, len(names), f"{source}_colors")
        names += [f"class {number}" for number in range(len(names), num_classes)]
        more = distinct_colors(len(names))[len(known) :]
        complete[f"{kind}_classes"] = names
        complete[f"{kind}_colors"] = np.concatenate([known, more]).tolist()
    return Metadata(**complete)
