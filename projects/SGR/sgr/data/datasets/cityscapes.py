"""Cityscapes, fine annotations: 19 classes, 2975 training, 500 validation and 1525 test images.

Detectron2's own ``cityscapes_fine_sem_seg_{train,val,test}``, with colours, and
``cityscapes_fine_panoptic_{train,val}``, with errors that say what is missing. Detectron2 would
look at the files of the first image only, and fail at hidden files, such as a .DS_Store, and at
panoptic data below a folder with a dot in its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ..faults import list_faults
from .missing import IncompleteDataset, check_present, datasets_root, incomplete_dataset
from .registration import replace_builtin

__all__ = ["CITYSCAPES_COLORS", "load_cityscapes", "load_cityscapes_panoptic"]

CITYSCAPES_COLORS = [
    each["color"] for each in sorted(CITYSCAPES_CATEGORIES, key=lambda each: each["trainId"])
]

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
# What training, evaluation or Detectron2's own loader reads.
_NEEDED = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")
_CLASSES = {each["id"]: each["trainId"] for each in CITYSCAPES_CATEGORIES}


def load_cityscapes(split: str) -> list[dict]:
    """Records of Cityscapes, as those of Detectron2's ``load_cityscapes_semantic``, by name.

    Args:
        split: "train", "val" or "test", whose label maps hold nothing but ignored pixels.

    Raises:
        FileNotFoundError: the split is not there, or an image lacks one of its other files.
        ValueError: there are files, other than hidden ones, that Cityscapes does not have.
    """
    paths = _paths(split)
    check_present(paths.values(), HOW_TO_GET_CITYSCAPES)
    found, missing = _find(paths["image_dir"], paths["gt_dir"])
    records = []
    for image, stem in found:
        polygons = json.loads(Path(f"{stem}_polygons.json").read_text(encoding="utf-8"))
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": f"{stem}_labelTrainIds.png",
                "height": polygons["imgHeight"],
                "width": polygons["imgWidth"],
            }
        )
    if missing:
        raise incomplete_dataset(missing, records, HOW_TO_GET_CITYSCAPES)
    return records


def load_cityscapes_panoptic(split: str) -> list[dict]:
    """Records of Cityscapes' segments, as those of Detectron2's function of this name.

    The segments are those of 19 classes, things and stuff; ``sem_seg_file_name`` has the same
    classes.

    Args:
        split: "train" or "val".

    Raises:
        FileNotFoundError: the split or the panoptic pictures are not there, or a file is missing.
        ValueError: the JSON file is damaged or not of the official labels; or there are files,
            other than hidden ones, that Cityscapes does not have.
    """
    paths, panoptic = _paths(split), _panoptic_paths(split)
    root, file = panoptic["panoptic_root"], panoptic["panoptic_json"]
    check_present((*paths.values(), root, file), HOW_TO_GET_CITYSCAPES_PANOPTIC)
    pictures = {path.name for path in _visible(root)}
    found, missing = _find(**paths, needed=["labelTrainIds.png"])
    images = {image.name[: -len(_SUFFIX)]: (image, stem) for image, stem in found}
    # Nothing is said of an image's segments where it lacks its label map.
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
    """Names of images and their pictures, and segments whose categories are classes."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        unknown = {each["id"] for each in content["categories"]} - _CLASSES.keys()
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
            f"{file} is damaged, or not of the official numbers of the labels, as with "
            f"--use-train-id: {type(error).__name__}: {error}"
        ) from error


def _find(
    image_dir: Path, gt_dir: Path, needed: Sequence[str] = _NEEDED
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Images, and how the paths of their annotations begin; and what of them is missing.

    Costs a listing of two folders per city.
    """
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
            names = [f"{stem}_{each}" for each in needed]
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

for _split in ("train", "val"):
    replace_builtin(
        f"cityscapes_fine_panoptic_{_split}",
        partial(load_cityscapes_panoptic, _split),
        partial(_all_paths, _split),
    )
