"""Datasets of your own, described by a YAML file (DATASETS.FILES).

    name: my_data                # registers my_data_train and my_data_val
    classes: [road, car, sky]    # names of the labels 0, 1, 2; or a text file, or a number
    splits:
      train: {images: images/train, labels: labels/train, instances: train.json}
      val: {images: images/val, labels: labels/val}

``images``, ``labels`` and ``instances`` before ``splits`` count for all splits that do not have
them; so splits of one folder only need a different ``list``. ``val_share: 0.1`` instead of
``splits`` takes about a tenth of the images of one folder for my_data_val, and the rest for
my_data_train. Further keys are ``ignore_label``, ``label_suffix``, ``colors`` and ``tree``. Paths
are relative to the file. :func:`.folders.register_sem_seg` explains the keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..faults import shorten
from ..mappers.semantic import SEMANTIC_MAPPERS
from ..texts import compose_yaml
from .classes import as_class_names
from .folders import is_of_folders, register_folders
from .image_folders import Folders
from .pairs import WITHOUT_LABELS

_PATHS = ("images", "labels", "instances", "list")
_KEYS = {
    "name": str,
    "classes": (list, str, int),
    "ignore_label": int,
    "colors": list,
    "tree": (dict, list),
    "label_suffix": str,
    "images": str,
    "labels": str,
    "instances": str,
    "splits": dict,
    "val_share": (int, float),
}
_KEYS_OF_SPLIT = dict.fromkeys(_PATHS, str)


@dataclass(frozen=True)
class _Description:
    datasets: dict[str, Folders]
    classes: list[str] | None
    options: dict[str, Any]  # of register_folders


# The registered descriptions, by the absolute path of the file.
_registered: dict[Path, _Description] = {}


def register_dataset_file(file: str | os.PathLike) -> list[str]:
    """Register the datasets that a YAML file describes, see :mod:`.descriptions`.

    It reads this file, and the file of the classes. Images and label maps are read when a dataset
    is loaded. A file may be registered again: if it has changed, its datasets are replaced, unless
    there is an error.

    Args:
        file: path, relative to the current directory.

    Returns:
        The names of the datasets.

    Raises:
        FileNotFoundError: the file, or the file of class names, does not exist.
        ValueError: it is no YAML file of this kind, or has an unknown key; or there is a dataset of
            this name from elsewhere.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no description of a dataset {str(file)!r} ({path})")
    try:
        new = _parse(_read(path), path.parent)
        old = _registered.get(path)
        names = list(new.datasets)
        if old == new and all(name in DatasetCatalog for name in names):
            return names
        replaced = old.datasets.keys() if old else ()
        for other, description in _registered.items():
            for name in names:
                if other != path and name in description.datasets and name in DatasetCatalog:
                    raise ValueError(f"{other} describes a dataset {name!r} already")
        register_folders(new.datasets, classes=new.classes, replaced=replaced, **new.options)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    _registered[path] = new
    return names


def add_described_datasets(cfg: CfgNode) -> None:
    """Register the datasets of ``cfg.DATASETS.FILES``, and fit the number of classes to them.

    The paths become absolute, so that a saved config works in any folder.

    If MODEL.SEM_SEG_HEAD.NUM_CLASSES is 0, it becomes the number of classes of the datasets in
    DATASETS.TRAIN and TEST, whether or not FILES describes them. It stays 0 if there are no such
    datasets. If a description does not name the classes, this reads all label maps.

    If FILES is not empty, or the number is 0, all names in TRAIN and TEST must be registered:
    register other datasets before the config is loaded.

    Args:
        cfg: not frozen; changed in place.

    Raises:
        FileNotFoundError: one of the files does not exist; see also :func:`register_dataset_file`.
        ValueError: see :func:`register_dataset_file`; one of the datasets is not registered; the
            number is 0 and the datasets differ; or the config trains on label maps, and the number
            is neither 0 nor that of a dataset of your own.
    """
    files = [os.path.abspath(os.path.expanduser(file)) for file in cfg.DATASETS.FILES]
    for file, path in zip(cfg.DATASETS.FILES, files, strict=True):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"there is no description of a dataset {file!r} ({path}); paths in DATASETS.FILES "
                'are relative to the current folder, and DATASETS.FILES "[]" uses a trained '
                "model without the data"
            )
    cfg.DATASETS.FILES = files
    described = [name for file in files for name in register_dataset_file(file)]
    head = cfg.MODEL.SEM_SEG_HEAD
    used = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    unknown = [name for name in used if name not in DatasetCatalog]
    if unknown and (described or head.NUM_CLASSES == 0):
        raise ValueError(
            f"DATASETS.TRAIN or TEST has {unknown[0]!r}, which is not registered; DATASETS.FILES "
            f"{files} describes {', '.join(described) or 'nothing'}"
        )
    if head.NUM_CLASSES == 0:
        head.NUM_CLASSES = _common_number(used)
    elif cfg.INPUT.DATASET_MAPPER_NAME in SEMANTIC_MAPPERS:
        for name in filter(is_of_folders, used):
            num_classes = _num_classes(name, load=False)
            if num_classes not in (None, head.NUM_CLASSES):
                raise ValueError(
                    f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but the dataset {name} "
                    f"has {num_classes} classes; set it to their number, or to 0 to take it from "
                    "the dataset"
                )


def _common_number(names: Iterable[str]) -> int:
    numbers = {name: _num_classes(name) for name in names}
    if len(set(numbers.values())) > 1:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 0, to be taken from the datasets, but they have "
            f"different numbers of classes: {numbers}"
        )
    return next(iter(numbers.values()), None) or 0


def _num_classes(name: str, *, load: bool = True) -> int | None:
    """The number of classes of a dataset; None if it is not known, or only after loading."""
    classes = MetadataCatalog.get(name).get("stuff_classes")
    if classes is None and load:
        DatasetCatalog.get(name)
        classes = MetadataCatalog.get(name).get("stuff_classes")
    return None if classes is None else len(classes)


def _read(path: Path) -> dict[str, Any]:
    node = compose_yaml(path)
    try:
        content = None if node is None else yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-99-99
        raise ValueError(f"the file is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"a description has keys, such as name, images and labels, not {shorten(content)}"
        )
    return content


def _parse(content: dict[str, Any], folder: Path) -> _Description:
    _check_keys(content, _KEYS, "")
    if not content.get("name"):
        raise ValueError("there is no name for the dataset")
    if ("splits" in content) == ("val_share" in content):
        raise ValueError("there must be either splits, or val_share for images in one folder")
    if "splits" in content:
        splits = {str(key): split or {} for key, split in content["splits"].items()}
        shares = {}
    else:
        share = content["val_share"]
        if not 0 < share < 1:
            raise ValueError(f"val_share is {share}, and must be between 0 and 1")
        splits = {"train": {}, "val": {}}
        shares = {"train": (share, 1.0), "val": (0.0, share)}
    if not splits:
        raise ValueError("splits has none")

    datasets = {}
    _check_name("name", content["name"])
    for key, split in splits.items():
        _check_name("split", key)
        if not isinstance(split, dict):
            raise ValueError(f"splits.{key} must have keys, such as images, not {shorten(split)}")
        _check_keys(split, _KEYS_OF_SPLIT, f"splits.{key}.")
        paths = {
            name: None if path is None else folder / Path(path).expanduser()
            for name in _PATHS
            for path in [split.get(name, content.get(name))]
        }
        images, labels = paths["images"], paths["labels"]
        if images is None or labels is None:
            needed = "images" if images is None else "labels"
            hint = "" if images is None else f"; {WITHOUT_LABELS}"
            raise ValueError(f"the split {key} has no {needed}: name their folder{hint}")
        datasets[f"{content['name']}_{key}"] = Folders(
            images,
            labels,
            label_suffix=content.get("label_suffix", ""),
            list_file=paths["list"],
            share=shares.get(key, (0.0, 1.0)),
            instances_json=paths["instances"],
        )

    classes = content.get("classes")
    if isinstance(classes, str):
        classes = folder / Path(classes).expanduser()
    if classes is not None:
        classes = as_class_names(classes)
    options: dict[str, Any] = {
        key: content[key] for key in ("ignore_label", "colors", "tree") if key in content
    }
    return _Description(datasets, classes, options)


def _check_name(what: str, name: str) -> None:
    """Refuse names that are paths: files about a dataset lie in a folder of its name."""
    if name.startswith(".") or len(name) > 100 or not name.isprintable() or set(name) & set("/\\"):
        raise ValueError(
            f"the {what} is {shorten(name)}; it must have at most 100 characters, without / "
            "and \\, and not begin with a dot"
        )


def _check_keys(content: dict[str, Any], known: dict[str, Any], prefix: str) -> None:
    for key, value in content.items():
        if key not in known:
            shown = key if isinstance(key, str) else shorten(key)
            raise ValueError(f"there is no key {prefix}{shown}; known keys are {', '.join(known)}")
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        if isinstance(value, bool) or not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"{prefix}{key} is {shorten(value)}, of type {type(value).__name__}; "
                f"expected is {expected}"
            )
