#!/usr/bin/env python
"""Prepare Cityscapes with fine annotations for training; cityscapesscripts is not needed.

    python datasets/prepare_cityscapes.py [--root ROOT] [--workers N] [--check] [--partial]

reads, under the root of all datasets,

    cityscapes/
      leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
      gtFine/{train,val,test}/CITY/NAME_gtFine_labelIds.png       the 34 labels of the release
      gtFine/{train,val,test}/CITY/NAME_gtFine_polygons.json

and writes

      gtFine/{train,val,test}/CITY/NAME_gtFine_labelTrainIds.png  0 to 18, and 255 for the others

Right results are left as they are, so an interrupted run can be repeated. The test split, whose
annotations are not public, is prepared if both of its folders exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from preparation import IGNORED, Split, find_files, main, pair_files, to_classes
from sgr.data.faults import Fault, FaultKind
from sgr.data.truth.image_files import read_labels

NUM_IMAGES = {"train": 2975, "val": 500, "test": 1525}
LABELS = "_gtFine_labelIds.png"
# Class of each official label; of 34, fifteen are not evaluated.
CLASSES = np.full(34, IGNORED, np.int16)
for _category in CITYSCAPES_CATEGORIES:
    CLASSES[_category["id"]] = _category["trainId"]


def find_splits(root: Path, *, partial: bool = False) -> list[Split]:
    folder = root / "cityscapes"
    splits = []
    for split, count in NUM_IMAGES.items():
        images, labels = folder / "leftImg8bit" / split, folder / "gtFine" / split
        if split == "test" and not (images.is_dir() and labels.is_dir()):
            continue
        found = pair_files(
            f"{folder}, {split}",
            find_files(images, "_leftImg8bit.png"),
            find_files(labels, LABELS),
            lambda key, labels=labels: labels / f"{key}_gtFine_labelTrainIds.png",
            expected=count,
            partial=partial,
        )
        instances = find_files(labels, "_gtFine_instanceIds.png")
        for task in found.tasks:
            key = task.labels.relative_to(labels).as_posix()[: -len(LABELS)]
            if (
                key not in instances
            ):  # Detectron2's loader needs them, although it does not read them
                message = f"{found.name} lacks the instanceIds.png of {key}"
                found.faults.append(Fault(message, FaultKind.PAIRS))
        splits.append(found)
    return splits


def read(file: Path) -> np.ndarray:
    labels = to_classes(read_labels(str(file)), CLASSES, file)
    _check_polygons(file.with_name(file.name.replace(LABELS, "_gtFine_polygons.json")), labels)
    return labels


def _check_polygons(file: Path, labels: np.ndarray) -> None:
    """Detectron2's loader takes the images' sizes from these files."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        size = content["imgHeight"], content["imgWidth"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read, it may be damaged: {error!r}") from error
    if size != labels.shape:
        raise ValueError(
            f"{file} says {size[1]} x {size[0]} pixels, but the label map beside it is "
            f"{labels.shape[1]} x {labels.shape[0]}"
        )


if __name__ == "__main__":
    sys.exit(main(find_splits, read, description=__doc__))
