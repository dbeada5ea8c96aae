"""Shapes: small generated scenes, to try everything without a download.

It registers ``shapes_sem_seg_{train,val}`` and ``shapes_instance_{train,val}``, with the same
images. The records of the former also have the annotations of things, so that one run can measure
classes and instances.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets.coco import load_coco_json

from .missing import IncompleteDataset, check_present, datasets_root
from .registration import register

# The order of the labels, and of the categories in the JSON files; see datasets/make_shapes.py.
SHAPES_STUFF = ["sky", "water", "grass", "wall"]
SHAPES_THINGS = ["disc", "box", "triangle", "star", "ring"]
SHAPES_CLASSES = SHAPES_STUFF + SHAPES_THINGS
# By form; ``class_tree`` in the metadata.
SHAPES_TREE = {
    "stuff": SHAPES_STUFF,
    "round": ["disc", "ring"],
    "angular": ["box", "triangle", "star"],
}
SHAPES_COLORS = [
    (120, 180, 240),
    (30, 90, 200),
    (70, 160, 60),
    (190, 110, 70),
    (230, 40, 60),
    (240, 200, 40),
    (160, 60, 200),
    (250, 140, 200),
    (40, 220, 210),
]

HOW_TO_GET_SHAPES = """
This dataset is not downloaded but made, in about a minute:
    python datasets/make_shapes.py
which writes, into the root of all datasets:
    shapes/
      images/{train,val}/NAME.jpg
      sem_seg/{train,val}/NAME.png
      annotations/instances_{train,val}.json
"""


def load_shapes_instance(split: str) -> list[dict]:
    """Load records of "train" or "val" in Detectron2's format for instances.

    Raises:
        FileNotFoundError: the dataset has not been made.
    """
    return _load(split, f"shapes_instance_{split}")


def load_shapes_sem_seg(split: str) -> list[dict]:
    """Load records with ``sem_seg_file_name``, and ``annotations`` as in the instance dataset.

    Raises:
        FileNotFoundError: the dataset has not been made.
    """
    label_dir = _paths(split)["sem_seg_root"]
    records, faults = [], []
    for record in _load(split, f"shapes_sem_seg_{split}"):
        label_file = label_dir / f"{Path(record['file_name']).stem}.png"
        if label_file.is_file():
            records.append({**record, "sem_seg_file_name": str(label_file)})
        else:
            image = record["file_name"]
            faults.append(f"image without a label map: {image} has no partner in {label_dir}")
    if faults:
        raise IncompleteDataset(faults[0], faults=faults, records=records)
    return records


def _load(split: str, name: str) -> list[dict]:
    paths = _paths(split)
    check_present(paths.values(), HOW_TO_GET_SHAPES)
    # With the name, Detectron2 numbers the categories from 0, and checks them against the metadata.
    return load_coco_json(str(paths["json_file"]), str(paths["image_root"]), name)


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "shapes"
    return {
        "image_root": folder / "images" / split,
        "sem_seg_root": folder / "sem_seg" / split,
        "json_file": folder / "annotations" / f"instances_{split}.json",
    }


_THINGS = {
    "thing_classes": SHAPES_THINGS,
    "thing_colors": SHAPES_COLORS[len(SHAPES_STUFF) :],
    "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(SHAPES_THINGS))},
}

for _split in ("train", "val"):
    register(
        f"shapes_sem_seg_{_split}",
        partial(load_shapes_sem_seg, _split),
        partial(_paths, _split),
        stuff_classes=SHAPES_CLASSES,
        stuff_colors=SHAPES_COLORS,
        class_tree=SHAPES_TREE,
        ignore_label=255,
        evaluator_type="sem_seg",
        **_THINGS,
    )
    register(
        f"shapes_instance_{_split}",
        partial(load_shapes_instance, _split),
        partial(_paths, _split),
        evaluator_type="coco",
        **_THINGS,
    )
