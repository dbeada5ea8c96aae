"""Miniature copies of datasets as they are downloaded: official names, folders and label encodings.

Each function writes a few images and label maps below a root of datasets, and returns what the
prepared label maps should hold: {file: (H, W) uint8}, computed pixel by pixel from the official
tables, which are spelt out here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from scipy.io import savemat

SIZE = (24, 32)

# Of the numbers 1 to 91, those of things that no image of COCO has.
COCO_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)

# The labels of Cityscapes that are evaluated, in the order of their trainIds.
CITYSCAPES_EVALUATED = (
    7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33
)  # fmt: skip


def write_ade20k(root: Path, *, train: int = 3, val: int = 2, seed: int = 0) -> dict:
    """ADEChallengeData2016: labels 0 (other) to 150."""
    rng = np.random.default_rng(seed)
    folder = root / "ADEChallengeData2016"
    expected = {}
    for split, short, count in [("training", "train", train), ("validation", "val", val)]:
        for number in range(1, count + 1):
            name = f"ADE_{short}_{number:08d}"
            labels = _blocks(rng, range(151)).astype(np.uint8)
            _write_image(folder / "images" / split / f"{name}.jpg", rng)
            _write_labels(folder / "annotations" / split / f"{name}.png", labels)
            expected[folder / "annotations_detectron2" / split / f"{name}.png"] = _each(
                labels, lambda label: 255 if label == 0 else label - 1
            )
    return expected


def write_cityscapes(root: Path, *, splits=("train", "val"), seed: int = 0) -> dict:
    """leftImg8bit and gtFine: two cities per split, two images each, labels 0 to 33."""
    rng = np.random.default_rng(seed)
    folder = root / "cityscapes"
    cities = {"train": ("aachen", "bochum"), "val": ("lindau", "munster"), "test": ("berlin",)}
    expected = {}
    for split in splits:
        for city in cities[split]:
            for frame in (19, 4019):
                name = f"{city}_000000_{frame:06d}"
                labels = _blocks(rng, range(34)).astype(np.uint8)
                truth = folder / "gtFine" / split / city
                _write_image(
                    folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", rng
                )
                _write_labels(truth / f"{name}_gtFine_labelIds.png", labels)
                _write_labels(truth / f"{name}_gtFine_instanceIds.png", labels.astype(np.uint16))
                _write_labels(truth / f"{name}_gtFine_color.png", labels)
                content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": []}
                (truth / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
                expected[truth / f"{name}_gtFine_labelTrainIds.png"] = _each(
                    labels,
                    lambda label: (
                        CITYSCAPES_EVALUATED.index(label)
                        if label in CITYSCAPES_EVALUATED
                        else 255
                    ),
                )
    return expected


def write_coco_stuff_10k(
    root: Path, *, train: int = 3, test: int = 2, form: str = "uint8", seed: int = 0
) -> dict:
    """coco/coco_stuff_10k with labels 0 (unlabelled) to 182.

    Args:
        form: of the label maps: "png", or the type of the numbers in MATLAB files, "uint8",
            "uint16" or "float64".
    """
    rng = np.random.default_rng(seed)
    folder = root / "coco" / "coco_stuff_10k"
    present = [number for number in range(1, 183) if number not in COCO_ABSENT]
    expected, everything = {}, []
    (folder / "imageLists").mkdir(parents=True)
    for split, count in [("train", train), ("test", test)]:
        names = [f"COCO_train2014_{100 * len(split) + i:012d}" for i in range(count)]
        everything += names
        (folder / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            labels = _blocks(rng, [0, *present])
            _write_image(folder / "images" / f"{name}.jpg", rng)
            file = folder / "annotations" / f"{name}.mat"
            if form == "png":
                _write_labels(file.with_suffix(".png"), labels.astype(np.uint8))
            else:
                file.parent.mkdir(exist_ok=True)
                class_names = np.array([f"name {i}" for i in range(182)], object)[:, None]
                content = {"S": labels.astype(form), "names": class_names, "captions": "none"}
                savemat(file, content, do_compression=True)
            expected[folder / "annotations_detectron2" / split / f"{name}.png"] = _each(
                labels, lambda label: 255 if label == 0 else present.index(label)
            )
    (folder / "imageLists" / "all.txt").write_text("\n".join(sorted(everything)) + "\n")
    return expected


def forget_colors() -> None:
    """Take from the metadata what loading has added, for tests of how they are after import."""
    for name in MetadataCatalog.list():
        if name.startswith(("ade20k_sem_seg_", "cityscapes_fine_sem_seg_")):
            vars(MetadataCatalog.get(name)).pop("stuff_colors", None)


def _blocks(rng: np.random.Generator, labels) -> np.ndarray:
    """(H, W) labels in blocks of 4 x 4 pixels; each label has its turn over several maps."""
    height, width = SIZE[0] // 4, SIZE[1] // 4
    return rng.choice(np.array(list(labels)), (height, width)).repeat(4, 0).repeat(4, 1)


def _each(labels: np.ndarray, convert) -> np.ndarray:
    rows = [[convert(int(label)) for label in row] for row in labels]
    return np.array(rows, np.uint8)


def _write_image(file: Path, rng: np.random.Generator) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(file)


def _write_labels(file: Path, labels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(file)
