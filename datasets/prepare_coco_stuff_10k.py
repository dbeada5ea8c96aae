#!/usr/bin/env python
"""Prepare COCO-Stuff-10K (cocostuff-10k-v1.1.zip) for training.

    python datasets/prepare_coco_stuff_10k.py [--root ROOT] [--workers N] [--check] [--partial]

reads, under the root of all datasets,

    coco/coco_stuff_10k/
      images/NAME.jpg
      annotations/NAME.mat                            field S: 0 unlabelled, 1 to 182
      imageLists/{train,test}.txt                     the names of a split, a line each

and writes

      images_detectron2/{train,test}/NAME.jpg         hard links, or copies where there are none
      annotations_detectron2/{train,test}/NAME.png    0 to 170, and 255 for unlabelled

Eleven of COCO's numbers 1 to 182 mean things that no image has. The others become 0 to 170 in
their order. Label maps may also be annotations/NAME.png with the same numbers. Version 1.0 of the
annotations (1 unlabelled, 2 to 172) has the same classes in the same order. It is recognised by the
class names in its files, and needs the package h5py.

Right results are left as they are, so an interrupted run can be repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from scipy.io import loadmat

from preparation import IGNORED, Split, find_files, main, pair_files, to_classes
from sgr.data.faults import Fault, FaultKind
from sgr.data.texts import read_text
from sgr.data.truth.image_files import read_labels

# COCO's numbers of the 80 things, and those of the 91 kinds of stuff.
IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]] + [*range(92, 183)]
# Class of each official label.
CLASSES = np.full(183, -1, np.int16)
CLASSES[0] = IGNORED
CLASSES[IDS] = np.arange(171)
CLASSES_V1_0 = np.array([-1, IGNORED, *range(171)], np.int16)
# The number of class names in files of version 1.0, and the first one. Later files have 182 names.
NUM_NAMES_V1_0 = 172
FIRST_NAME_V1_0 = "unlabeled"


def find_splits(root: Path, *, partial: bool = False) -> list[Split]:
    folder = root / "coco" / "coco_stuff_10k"
    images = find_files(folder / "images", ".jpg")
    labels = find_files(folder / "annotations", ".mat", ".png")
    splits = []
    for split in ("train", "test"):
        list_file = folder / "imageLists" / f"{split}.txt"
        name = f"{folder}, {split}"
        if not list_file.is_file():
            splits.append(
                Split(name, [], [Fault(f"{list_file} does not exist", FaultKind.UNREADABLE)])
            )
            continue
        splits.append(
            pair_files(
                name,
                images,
                labels,
                lambda key, split=split: folder / "annotations_detectron2" / split / f"{key}.png",
                image_target=lambda key, split=split: (
                    folder / "images_detectron2" / split / f"{key}.jpg"
                ),
                # Names by line; some lists end in blank ones.
                expected=dict.fromkeys(read_text(list_file).split()),
                partial=partial,
            )
        )
    return splits


def read(file: Path) -> np.ndarray:
    if file.suffix == ".png":
        return to_classes(read_labels(str(file)), CLASSES, file)
    labels, num_names, first_name = _read_mat(file)
    is_v1_0 = num_names == NUM_NAMES_V1_0
    if not num_names or is_v1_0 and first_name != FIRST_NAME_V1_0:
        found = f"has {num_names} of them, the first {first_name!r}" if num_names else "has none"
        raise ValueError(
            f"the class names in label map {file} must tell its version, but it {found}; use the "
            "files of the release"
        )
    return to_classes(labels, CLASSES_V1_0 if is_v1_0 else CLASSES, file)


def _read_mat(file: Path) -> tuple[np.ndarray, int, str]:
    """(H, W) int32 labels as stored, the number of class names in the file, and the first name."""
    try:
        content = loadmat(file, variable_names=("S", "names"))
    except NotImplementedError:  # MATLAB 7.3, another format
        labels, num_names, first_name = _read_hdf5(file)
    except Exception as error:  # a damaged file raises many kinds
        raise OSError(f"label map {file} cannot be read, it may be damaged: {error}") from error
    else:
        if "S" not in content:
            raise ValueError(f"label map {file} has no field S")
        labels, names = content["S"], np.asarray(content.get("names", ()))
        num_names = names.size
        first_name = str(np.squeeze(names.flat[0])) if num_names else ""
    # Numbers in MATLAB are floating-point by default.
    integers = labels.astype(np.int32)
    if labels.ndim != 2 or (integers != labels).any():
        raise ValueError(f"label map {file} has no (height, width) map of integers as its field S")
    return integers, num_names, first_name


def _read_hdf5(file: Path) -> tuple[np.ndarray, int, str]:
    try:
        import h5py
    except ImportError:
        raise OSError(
            f"{file} is of version 1.0 of COCO-Stuff-10K: pip install h5py, which reads it, or "
            "take the annotations of version 1.1"
        ) from None
    try:
        with h5py.File(file, "r") as content:
            labels = content["S"][()].T  # MATLAB stores the columns first.
            if "names" not in content:
                return labels, 0, ""
            names = content["names"][()]  # references to texts, each a number per letter
            return labels, names.size, "".join(map(chr, content[names.flat[0]][()].flat))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"label map {file} cannot be read, it may be damaged: {error}") from error


if __name__ == "__main__":
    sys.exit(main(find_splits, read, description=__doc__))
