"""Cityscapes, fine annotations: 19 classes, 2975 training, 500 validation and 1525 test images.

Detectron2's own ``cityscapes_fine_sem_seg_{train,val,test}``, with colours, and with errors that
say what is missing. Detectron2 would look at the files of the first image only, and fail at hidden
files, such as a .DS_Store.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ..faults import list_faults
from .registration import add_metadata, datasets_root, missing_dataset, replace_builtin, set_paths

__all__ = ["CITYSCAPES_COLORS", "load_cityscapes"]

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

_SUFFIX = "_leftImg8bit.png"
# What training, evaluation or Detectron2's own loader reads.
_NEEDED = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")


def load_cityscapes(split: str) -> list[dict]:
    """Records of Cityscapes, as those of Detectron2's ``load_cityscapes_semantic``, by name.

    Args:
        split: "train", "val" or "test", whose label maps hold nothing but ignored pixels.

    Raises:
        FileNotFoundError: the split is not there, or an image lacks one of its other files.
        ValueError: there are files, other than hidden ones, that Cityscapes does not have.
    """
    paths = _paths(split)
    for folder in paths.values():
        if not folder.is_dir():
            raise missing_dataset(folder, HOW_TO_GET_CITYSCAPES)
    records = []
    for image, stem in _find(**paths):
        polygons = json.loads(Path(f"{stem}_polygons.json").read_text(encoding="utf-8"))
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": f"{stem}_labelTrainIds.png",
                "height": polygons["imgHeight"],
                "width": polygons["imgWidth"],
            }
        )
    return records


def _find(image_dir: Path, gt_dir: Path) -> list[tuple[Path, str]]:
    """Images, and how the paths of their annotations begin; a listing of two folders per city."""
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
            found.append((image, str(labels / stem)))
            needed = [f"{stem}_{each}" for each in _NEEDED]
            missing += [str(labels / name) for name in needed if name not in there]
    if unexpected:
        raise ValueError(
            f"{image_dir} may hold nothing but folders of cities with files *{_SUFFIX}; remove:\n"
            f"{list_faults(unexpected)}"
        )
    if missing or not found:
        what = f"files are missing:\n{list_faults(missing)}" if missing else f"{image_dir} is empty"
        raise FileNotFoundError(f"{what}\n{HOW_TO_GET_CITYSCAPES.strip()}")
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "cityscapes"
    return {"image_dir": folder / "leftImg8bit" / split, "gt_dir": folder / "gtFine" / split}


def _load_registered(name: str, split: str) -> list[dict]:
    set_paths(name, **_paths(split))
    # Not at import, where others may want to set theirs: Metadata accept no other value after.
    add_metadata(name, stuff_colors=CITYSCAPES_COLORS)
    return load_cityscapes(split)


for _split in ("train", "val", "test"):
    _name = f"cityscapes_fine_sem_seg_{_split}"
    replace_builtin(_name, partial(_load_registered, _name, _split))
