"""Writing a model folder."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from safetensors.torch import save_file
from torch import nn

from ..checkpoints.backbone_file import SETTINGS
from ..checkpoints.model_folder import (
    CARD,
    CONFIG,
    DESCRIPTION,
    FILES,
    FORMAT,
    LICENSE,
    WEIGHTS,
    digest,
)
from ..data.datasets.classes import are_numbers
from ..engine.config_check import flat
from ..evaluation.build import declared_outputs
from ..evaluation.json_file import write_json
from ..inference import dataset_metadata, numbers_of_classes
from ..modeling.outputs import thing_numbers
from ..visualization import class_colors
from .card import model_card

_DRAFT = ".sgr-package-"  # the beginning of the folder in which the files are made


def package_model(
    model: nn.Module,
    cfg: CfgNode,
    folder: str | PathLike,
    *,
    name: str = "",
    license: str = "unknown",
    metrics: Mapping[str, Any] | None = None,
    classes: Mapping[str, list[str]] | None = None,
    source: str = "",
    force: bool = False,
) -> dict[str, Any]:
    """Write a model folder: see :mod:`sgr.checkpoints.model_folder`.

    It needs the memory and the space of one more copy of the weights. All files are made before the
    first one is put into the folder.

    Args:
        model: the model, trained.
        cfg: the config that it was built from.
        folder: made if it is not there.
        name: for the model card; by default that of the folder.
        license: of the weights, as the hub calls it (``apache-2.0``, ``cc-by-nc-4.0``, ...); or the
            path of a file with its text, which comes along as LICENSE.
        metrics: of the last evaluation, as in ``results.json``.
        classes: their names as the training has them, by "stuff_classes" and "thing_classes". By
            default those of the first dataset in DATASETS.TEST.
        source: where the weights come from, for people to read.
        force: replace the files of a model folder that is there already.

    Returns:
        What ``model.json`` holds.

    Raises:
        FileExistsError: the folder has files, and ``force`` is False.
        ValueError: see :func:`license_file`.
        OSError: it cannot be written.
    """
    folder = Path(folder).expanduser()
    check_target(folder, force=force)
    name = name or folder.resolve().name
    own_license = license_file(license)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_DRAFT}*"):  # by a run that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_DRAFT) as made:
        draft = Path(made)
        # Copies: tied parameters share memory, which the format does not have.
        tensors = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in model.state_dict().items()
        }
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / CONFIG).write_text(_portable(cfg).dump(), encoding="utf-8")
        # The library lets nobody else read what it writes.
        (draft / WEIGHTS).chmod((draft / CONFIG).stat().st_mode)
        description = {
            "format": FORMAT,
            "name": name,
            "license": "other" if own_license else license,
            "source": source,
            "sha256": digest(draft / WEIGHTS),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "num_classes": numbers_of_classes(model, cfg),
            "classes": _classes(cfg, classes or {}),
            "settings": {key: value for key, value in flat(cfg) if key in SETTINGS},
            "metrics": dict(metrics or {}),
        }
        write_json(draft / DESCRIPTION, description)
        card = model_card(description, cfg)
        (draft / CARD).write_text(card, encoding="utf-8")
        if own_license:
            (draft / LICENSE).write_bytes(own_license.read_bytes())
        # The description first: it makes a folder one of a model, which can be written again.
        for file in sorted(FILES, key=lambda name: name != DESCRIPTION):
            if (draft / file).exists():
                os.replace(draft / file, folder / file)
            else:  # such as the licence of the model before
                (folder / file).unlink(missing_ok=True)
    return description


def check_target(folder: Path, *, force: bool) -> None:
    """Raise a FileExistsError if the files of a folder would be overwritten, or mixed."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file; name a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found = [name for name in names if not name.startswith(_DRAFT)]
    if found and not force:
        raise FileExistsError(
            f"the folder {str(folder)!r} has files already ({', '.join(found[:3])}); name another, "
            "or add --force (force=True) to replace those of a model"
        )
    if found and DESCRIPTION not in found:
        raise FileExistsError(
            f"the folder {str(folder)!r} has files, and is no model folder; name another"
        )


def license_file(license: str) -> Path | None:
    """The file that a licence names, None for the identifier of one.

    Raises:
        ValueError: it looks like a file, and there is none.
    """
    path = Path(license).expanduser()
    if path.is_file():
        return path
    # Identifiers may end in a number, such as apache-2.0.
    if {"/", os.sep} & set(license) or path.suffix[1:].isalpha():
        raise ValueError(
            f"the licence {license!r} is no file that is there; name one, or an identifier such as "
            "apache-2.0"
        )
    return None


def _portable(cfg: CfgNode) -> CfgNode:
    """The config without what belongs to one machine."""
    cfg = cfg.clone()
    cfg.defrost()
    defaults = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = defaults.OUTPUT_DIR, defaults.MODEL.DEVICE
    cfg.DATASETS.FILES, cfg.MODEL.WEIGHTS = [], ""
    return cfg


def _classes(cfg: CfgNode, trained: Mapping[str, list[str]]) -> dict[str, Any]:
    """Names and colours of the classes as far as they are known, and which of them are things."""
    metadata = dataset_metadata(cfg)
    classes: dict[str, Any] = {}
    for kind in ("stuff", "thing"):
        names = list(trained.get(f"{kind}_classes") or metadata.get(f"{kind}_classes") or ())
        if not are_numbers(names):
            colors = class_colors(metadata, len(names), f"{kind}_colors")
            classes |= {f"{kind}_classes": names, f"{kind}_colors": colors.tolist()}
    if classes and metadata.get("class_tree") is not None:
        classes["class_tree"] = metadata.class_tree
    outputs = declared_outputs(cfg)
    if outputs is not None and outputs.joint_classes:
        things = thing_numbers(metadata)
    else:  # detectors number the things alone
        ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        things = sorted(ids.values())
    if things:
        classes["things"] = things
    if not classes:
        logging.getLogger(__name__).warning(
            "The names of the classes are not known: the folder has only their number"
        )
    return classes
