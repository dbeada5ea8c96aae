"""Cityscapes, fine annotations: 19 classes, 2975 training, 500 validation and 1525 test images.

This replaces the loaders of Detectron2's ``cityscapes_fine_sem_seg_{train,val,test}`` and
``cityscapes_fine_panoptic_{train,val}``. Errors say which files are missing, and the former get
colours. Detectron2 checks the files of the first image only, and fails at hidden files (.DS_Store)
and at panoptic data in a folder with a dot in its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ..faults import list_faults
from .missing import IncompleteDataset, check_present, datasets_root, incomplete_dataset
from .registration import add_metadata, replace_builtin

_SORTED_CATEGORIES = sorted(CITYSCAPES_CATEGORIES, key=lambda category: category["trainId"])
CITYSCAPES_COLORS = [category["color"] for category in _SORTED_CATEGORIES]
# The benchmark's categories; ``class_tree`` in the metadata.
CITYSCAPES_TREE = {
    "flat": ["road", "sidewalk"],
    "construction": ["building", "wall", "fence"],
    "object": ["pole", "traffic light", "traffic sign"],
    "nature": ["vegetation", "terrain"],
    "sky": ["sky"],
    "human": ["person", "rider"],
    "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
}

HOW_TO_GET_CITYSCAPES = """
Cityscapes is expected as the packages leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip
(https://www.cityscapes-dataset.com/downloads), unpacked into one folder:
    cityscapes/
      leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
      gtFine/{train,val,test}/CITY/NAME_gtFine_{instanceIds,labelIds,labelTrainIds}.png
      gtFine/{train,val,test}/CITY/NAME_gtFine_polygons.json
The files *_labelTrainIds.png are not in them but made by
    python datasets/prepare_cityscapes.py
which goes on where it was broken off.
"""

HOW_TO_GET_CITYSCAPES_PANOPTIC = f"""
The panoptic pictures of Cityscapes, and the JSON file beside their folder,
    cityscapes/
      gtFine/cityscapes_panoptic_{{train,val}}/NAME_gtFine_panoptic.png
      gtFine/cityscapes_panoptic_{{train,val}}.json
are not in the packages but made by a command of Cityscapes' own, without --use-train-id,
    pip install cityscapesscripts
    csCreatePanopticImgs --dataset-folder "ROOT/cityscapes/gtFine" --set-names train val
after datasets/prepare_cityscapes.py, for they need its results, too. ROOT is the root of all
datasets. {HOW_TO_GET_CITYSCAPES.strip()}
"""

_SUFFIX = "_leftImg8bit.png"
_LABELS = "_gtFine_labelTrainIds.png"
# Files that training, evaluation or Detectron2's own loader read.
_NEEDED = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")
_CLASSES = {category["id"]: category["trainId"] for category in CITYSCAPES_CATEGORIES}


def load_cityscapes(split: str) -> list[dict]:
    """Load the records of Cityscapes, "train", "val" or "test", sorted by name.

    They are those of Detectron2's ``load_cityscapes_semantic``. In the label maps of "test" all
    pixels are ignored.

    Raises:
        FileNotFoundError: the split is not there, or an image lacks one of its other files.
        ValueError: there are visible files that Cityscapes does not have, or one is damaged.
    """
    paths = _paths(split)
    check_present(paths.values(), HOW_TO_GET_CITYSCAPES)
    found, missing = _find(paths["image_dir"], paths["gt_dir"])
    records = []
    for image, stem in found:
        file = Path(f"{stem}_polygons.json")
        try:
            polygons = json.loads(file.read_text(encoding="utf-8"))
            size = {"height": polygons["imgHeight"], "width": polygons["imgWidth"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error
        names = {"file_name": str(image), "sem_seg_file_name": f"{stem}_labelTrainIds.png"}
        records.append({**names, **size})
    if missing:
        raise incomplete_dataset(missing, records, HOW_TO_GET_CITYSCAPES)
    return records


def load_cityscapes_panoptic(split: str) -> list[dict]:
    """Load the panoptic records of Cityscapes, the same as Detectron2's function of this name.

    ``split`` is "train" or "val". The segments have 19 classes, things and stuff;
    ``sem_seg_file_name`` has the same classes.

    Raises:
        FileNotFoundError: the split or the panoptic pictures are not there, or a file is missing.
        ValueError: the JSON file is damaged or does not have the official labels; or there are
            visible files that Cityscapes does not have.
    """
    paths, panoptic = _paths(split), _panoptic_paths(split)
    root, file = panoptic["panoptic_root"], panoptic["panoptic_json"]
    check_present((*paths.values(), root, file), HOW_TO_GET_CITYSCAPES_PANOPTIC)
    pictures = {path.name for path in _visible(root)}
    found, missing = _find(**paths, needed=["labelTrainIds.png"])
    images = {image.name[: -len(_SUFFIX)]: (image, stem) for image, stem in found}
    # An image without its label map is reported already; its segments are not reported, too.
    known = images.keys() | {Path(file).name[: -len(_LABELS)] for file in missing}
    records = []
    for name, picture, segments in _read_panoptic(file):
        if picture not in pictures:
            missing.append(str(root / picture))
        if name not in known:
            missing.append(f"{name}{_SUFFIX} in {paths['image_dir']}")
        if name not in images:
            continue
        image, stem = images.pop(name)
        if picture not in pictures:
            continue
        records.append(
            {
                "file_name": str(image),
                "image_id": name,
                "sem_seg_file_name": f"{stem}_labelTrainIds.png",
                "pan_seg_file_name": str(root / picture),
                "segments_info": segments,
            }
        )
    missing += [f"the segments of {name} in {file}" for name in images]
    if missing:
        raise incomplete_dataset(missing, records, HOW_TO_GET_CITYSCAPES_PANOPTIC)
    return records


def _read_panoptic(file: Path) -> list[tuple[str, str, list[dict]]]:
    """The name, the picture and the segments of each image; categories become classes."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        unknown = {category["id"] for category in content["categories"]} - _CLASSES.keys()
        if unknown:
            raise ValueError(f"its categories include {sorted(unknown)}")
        return [
            (
                annotation["image_id"],
                annotation["file_name"],
                [
                    {**segment, "category_id": _CLASSES[segment["category_id"]]}
                    for segment in annotation["segments_info"]
                ],
            )
            for annotation in content["annotations"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged, or was made with --use-train-id and does not have the official "
            f"numbers of the labels: {type(error).__name__}: {error}"
        ) from error


def _find(
    image_dir: Path, gt_dir: Path, needed: Sequence[str] = _NEEDED
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Find pairs of an image and the start of its annotations' paths, and missing files."""
    found, missing, unexpected = [], [], []
    for city in _visible(image_dir):
        if not city.is_dir():
            unexpected.append(str(city))
            continue
        labels = gt_dir / city.name
        there = {path.name for path in labels.iterdir()} if labels.is_dir() else set()
        for image in _visible(city):
            if not image.name.endswith(_SUFFIX):
                unexpected.append(str(image))
                continue
            stem = f"{image.name[: -len(_SUFFIX)]}_gtFine"
            names = [f"{stem}_{ending}" for ending in needed]
            lacking = [str(labels / name) for name in names if name not in there]
            missing += lacking
            if not lacking:
                found.append((image, str(labels / stem)))
    if unexpected:
        raise ValueError(
            f"{image_dir} may hold nothing but folders of cities with files *{_SUFFIX}; remove:\n"
            f"{list_faults(unexpected)}"
        )
    if not missing and not found:
        raise IncompleteDataset(f"{image_dir} is empty\n{HOW_TO_GET_CITYSCAPES.strip()}")
    return found, missing


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "cityscapes"
    return {"image_dir": folder / "leftImg8bit" / split, "gt_dir": folder / "gtFine" / split}


def _panoptic_paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "cityscapes" / "gtFine"
    return {
        "panoptic_root": folder / f"cityscapes_panoptic_{split}",
        "panoptic_json": folder / f"cityscapes_panoptic_{split}.json",
    }


def _all_paths(split: str) -> dict[str, Path]:
    paths = _paths(split)
    return {"image_root": paths["image_dir"], "gt_dir": paths["gt_dir"], **_panoptic_paths(split)}


for _split in ("train", "val", "test"):
    replace_builtin(
        f"cityscapes_fine_sem_seg_{_split}",
        partial(load_cityscapes, _split),
        partial(_paths, _split),
        stuff_colors=CITYSCAPES_COLORS,
    )
    # Now, because a model is built before its data are loaded.
    add_metadata(f"cityscapes_fine_sem_seg_{_split}", class_tree=CITYSCAPES_TREE)

add_metadata("cityscapes_fine_sem_seg_test", labels_are_hidden=True)  # the server has them

for _split in ("train", "val"):
    replace_builtin(
        f"cityscapes_fine_panoptic_{_split}",
        partial(load_cityscapes_panoptic, _split),
        partial(_all_paths, _split),
    )
    add_metadata(f"cityscapes_fine_panoptic_{_split}", class_tree=CITYSCAPES_TREE)
