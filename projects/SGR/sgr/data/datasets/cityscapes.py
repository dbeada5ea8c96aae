"""Cityscapes, fine annotations: 19 classes, 2975 training, 500 validation and 1525 test images.

Detectron2's own ``cityscapes_fine_sem_seg_{train,val,test}``, with colours, and with errors that
say what is missing. Detectron2 would look at the files of the first image only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

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
# What Detectron2's loader looks for, or training reads.
_NEEDED = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")


def load_cityscapes(split: str) -> list[dict]:
    """Records of Cityscapes, those of Detectron2's ``load_cityscapes_semantic``.

    Args:
        split: "train", "val" or "test", whose label maps hold nothing but ignored pixels.

    Raises:
        FileNotFoundError: the split is not there, or an image lacks one of its other files.
        ValueError: there are files that Detectron2's loader does not expect.
    """
    paths = _paths(split)
    for folder in paths.values():
        if not folder.is_dir():
            raise missing_dataset(folder, HOW_TO_GET_CITYSCAPES)
    _check(**paths)
    return load_cityscapes_semantic(str(paths["image_dir"]), str(paths["gt_dir"]))


def _check(image_dir: Path, gt_dir: Path) -> None:
    """Look at the names of all files; a listing of two folders per city."""
    missing, unexpected = [], []
    num_images = 0
    for city in sorted(image_dir.iterdir()):
        if not city.is_dir():
            unexpected.append(str(city))
            continue
        labels = gt_dir / city.name
        there = {path.name for path in labels.iterdir()} if labels.is_dir() else set()
        for image in sorted(city.iterdir()):
            if not image.name.endswith(_SUFFIX):
                unexpected.append(str(image))
                continue
            num_images += 1
            stem = image.name[: -len(_SUFFIX)]
            needed = [f"{stem}_gtFine_{each}" for each in _NEEDED]
            missing += [str(labels / name) for name in needed if name not in there]
    if unexpected:
        raise ValueError(
            f"{image_dir} may hold nothing but folders of cities with files *{_SUFFIX}; remove:\n"
            f"{list_faults(unexpected)}"
        )
    if missing or not num_images:
        what = f"files are missing:\n{list_faults(missing)}" if missing else f"{image_dir} is empty"
        raise FileNotFoundError(f"{what}\n{HOW_TO_GET_CITYSCAPES.strip()}")


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "cityscapes"
    return {"image_dir": folder / "leftImg8bit" / split, "gt_dir": folder / "gtFine" / split}


def _load_registered(name: str, split: str) -> list[dict]:
    set_paths(name, **_paths(split))
    return load_cityscapes(split)


for _split in ("train", "val", "test"):
    _name = f"cityscapes_fine_sem_seg_{_split}"
    replace_builtin(_name, partial(_load_registered, _name, _split))
    add_metadata(_name, stuff_colors=CITYSCAPES_COLORS)
