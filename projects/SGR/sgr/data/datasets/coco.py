"""COCO 2017: 80 things, 53 kinds of stuff, 118287 training and 5000 validation images.

This replaces the loaders of Detectron2's own datasets by ones with the same records, whose errors
say which files are missing. S is "train" or "val".

==============================  ==================================================================
``coco_2017_S``                 instances of the 80 things
``coco_2017_S_panoptic``        segments of all 133 classes, things and stuff
``coco_2017_S_panoptic_``       label maps: 0 for all things, 1 to 53 for stuff; in the former with
``separated``, ``stuffonly``    the instances
==============================  ==================================================================

Detectron2 checks the files of the first image only, or none, and its stuffonly leaves out images
without a label map.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

from .missing import check_present, datasets_root, incomplete_dataset
from .registration import replace_builtin

HOW_TO_GET_COCO = """
COCO 2017 is expected as the archives train2017.zip, val2017.zip, annotations_trainval2017.zip
(instances) and panoptic_annotations_trainval2017.zip (https://cocodataset.org/#download), unpacked
into the folder coco under the root of all datasets, and the archives panoptic_*.zip that are in the
last one unpacked there, too:
    coco/
      {train,val}2017/NAME.jpg
      annotations/instances_{train,val}2017.json
      annotations/panoptic_{train,val}2017.json
      panoptic_{train,val}2017/NAME.png
      panoptic_stuff_{train,val}2017/NAME.png
The last folder, of the datasets "separated" and "stuffonly", is not in them but made by
    python datasets/prepare_coco.py
which also checks the download, and goes on where it was broken off.
"""

# COCO's numbers of the categories -> classes of the panoptic datasets.
_PANOPTIC_CLASSES = {
    "thing_dataset_id_to_contiguous_id": {
        category["id"]: index
        for index, category in enumerate(COCO_CATEGORIES)
        if category["isthing"]
    },
    "stuff_dataset_id_to_contiguous_id": {
        category["id"]: index
        for index, category in enumerate(COCO_CATEGORIES)
        if not category["isthing"]
    },
}


def load_coco_instances(split: str) -> list[dict]:
    """Load the records of ``coco_2017_{train,val}``, see Detectron2's ``load_coco_json``.

    Raises:
        FileNotFoundError: the split is not there, or an image of the JSON file is not.
        ValueError: the file is not JSON, or does not have COCO's instances.
    """
    return _complete(_load_instances(split, f"coco_2017_{split}"), "file_name")


def load_coco_panoptic(split: str) -> list[dict]:
    """Load the records of ``coco_2017_{train,val}_panoptic``.

    See Detectron2's ``load_coco_panoptic_json``. The file of instances may be missing; only the
    evaluation of AP reads it.

    Raises:
        FileNotFoundError: the split is not there, or an image or a picture of segments is not.
        ValueError: the file is not JSON, or does not have COCO's panoptic segments.
    """
    paths = _existing(split, "image_root", "panoptic_root", "panoptic_json")
    file = paths["panoptic_json"]
    try:
        records = load_coco_panoptic_json(
            str(file), str(paths["image_root"]), str(paths["panoptic_root"]), _PANOPTIC_CLASSES
        )
    except AssertionError as error:  # a file of the first image is missing, or there is no image
        if str(error).startswith("No images"):
            raise ValueError(f"{file} has no annotations") from error
        raise incomplete_dataset([str(error)], [], HOW_TO_GET_COCO) from error
    except (KeyError, TypeError, ValueError) as error:
        raise _not_of_segments(file, error) from error
    return _complete(records, "file_name", "pan_seg_file_name")


def load_coco_separated(split: str) -> list[dict]:
    """Load the records of ``coco_2017_*_panoptic_separated``: instances, and label maps of stuff.

    Raises:
        FileNotFoundError: the split is not there, or an image or a label map is not.
        ValueError: the file is not JSON, or does not have COCO's instances.
    """
    root = _existing(split, "image_root", "json_file", "sem_seg_root")["sem_seg_root"]
    records = _load_instances(split, f"coco_2017_{split}_panoptic_separated")
    for record in records:
        record["sem_seg_file_name"] = str(root / f"{Path(record['file_name']).stem}.png")
    return _complete(records, "file_name", "sem_seg_file_name")


def load_coco_stuff(split: str) -> list[dict]:
    """Load the records of ``coco_2017_*_panoptic_stuffonly``: images with label maps of stuff.

    If an image has no label map, it reads the JSON file of panoptic segments to see whether the
    image should have one. This takes a while.

    Raises:
        FileNotFoundError: the split is not there, or an image or its label map is missing.
        ValueError: that file is not JSON, or does not have COCO's panoptic segments.
    """
    paths = _existing(split, "image_root", "sem_seg_root")
    images = _paths_by_stem(paths["image_root"], ".jpg")
    labels = _paths_by_stem(paths["sem_seg_root"], ".png")
    unlabelled = images.keys() - labels.keys()
    if unlabelled and labels and paths["panoptic_json"].is_file():
        unlabelled &= _stems_of_segments(paths["panoptic_json"])
    missing = [str(paths["sem_seg_root"] / f"{stem}.png") for stem in sorted(unlabelled)]
    alone = sorted(labels.keys() - images.keys())
    missing += [str(paths["image_root"] / f"{stem}.jpg") for stem in alone]
    records = [
        {"file_name": images[stem], "sem_seg_file_name": labels[stem]}
        for stem in sorted(images.keys() & labels.keys())
    ]
    if missing or not images:
        missing = missing or [f"{paths['image_root']}/NAME.jpg"]
        raise incomplete_dataset(missing, records, HOW_TO_GET_COCO)
    return records


def _load_instances(split: str, name: str) -> list[dict]:
    """Load instances, and set the classes in the metadata of ``name``, as Detectron2 does."""
    paths = _existing(split, "image_root", "json_file")
    file = paths["json_file"]
    try:
        records = load_coco_json(str(file), str(paths["image_root"]), name)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        message = (
            f"{file} is not a file of COCO's instances, or damaged: {type(error).__name__}: {error}"
        )
        if "in the metadata of" in str(error):
            message += "\nRegister data with other categories under names of their own"
        raise ValueError(message) from error
    return records


def _complete(records: list[dict], *keys: str) -> list[dict]:
    """Return the records; raise IncompleteDataset if files under these keys are missing."""
    there: dict[str, set[str]] = {}
    missing: dict[str, list[str]] = {key: [] for key in keys}
    complete = []
    for record in records:
        lacking = 0
        for key in keys:
            folder, name = os.path.split(record[key])
            if folder not in there:
                there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if name not in there[folder]:
                missing[key].append(record[key])
                lacking += 1
        if not lacking:
            complete.append(record)
    files = [file for key in keys for file in missing[key]]
    if files:
        raise incomplete_dataset(files, complete, HOW_TO_GET_COCO)
    return records


def _not_of_segments(file: Path, error: Exception) -> ValueError:
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyError) and isinstance(error.args[0], int):
        why = f"it has the category_id {error.args[0]}, which COCO does not have"
    return ValueError(f"{file} is not a file of COCO's panoptic segments, or damaged: {why}")


def _stems_of_segments(panoptic_json: Path) -> set[str]:
    """Names, without suffix, of the images that have segments."""
    try:
        content = json.loads(panoptic_json.read_text(encoding="utf-8"))
        return {Path(annotation["file_name"]).stem for annotation in content["annotations"]}
    except (KeyError, TypeError, ValueError) as error:
        raise _not_of_segments(panoptic_json, error) from error


def _paths_by_stem(folder: Path, suffix: str) -> dict[str, str]:
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return {name[: -len(suffix)]: str(folder / name) for name in names if name.endswith(suffix)}


def _existing(split: str, *keys: str) -> dict[str, Path]:
    """All paths; raise FileNotFoundError unless the files and folders of ``keys`` exist."""
    paths = _paths(split, _RELATIVE_PATHS)
    check_present([paths[key] for key in keys], HOW_TO_GET_COCO)
    return paths


def _paths(split: str, keys: Iterable[str]) -> dict[str, Path]:
    return {key: datasets_root() / _RELATIVE_PATHS[key].format(split) for key in keys}


# By their names in the metadata.
_RELATIVE_PATHS = {
    "image_root": "coco/{}2017",
    "json_file": "coco/annotations/instances_{}2017.json",
    "panoptic_root": "coco/panoptic_{}2017",
    "panoptic_json": "coco/annotations/panoptic_{}2017.json",
    "sem_seg_root": "coco/panoptic_stuff_{}2017",
}
_INSTANCES = ("image_root", "json_file")
_PANOPTIC = (*_INSTANCES, "panoptic_root", "panoptic_json")

for _split in ("train", "val"):
    for _ending, _loader, _keys in (
        ("", load_coco_instances, _INSTANCES),
        ("_panoptic", load_coco_panoptic, _PANOPTIC),
        ("_panoptic_separated", load_coco_separated, (*_PANOPTIC, "sem_seg_root")),
        ("_panoptic_stuffonly", load_coco_stuff, ("image_root", "sem_seg_root")),
    ):
        replace_builtin(
            f"coco_2017_{_split}{_ending}",
            partial(_loader, _split),
            partial(_paths, _split, _keys),
            only_at={_key: _RELATIVE_PATHS[_key].format(_split) for _key in _keys},
        )
