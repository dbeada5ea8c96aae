#!/usr/bin/env python
"""Prepare ADE20K, the release for scene parsing (ADEChallengeData2016.zip), for training.

    python datasets/prepare_ade20k.py [--root ROOT] [--workers N] [--check] [--partial]

reads, under the root of all datasets,

    ADEChallengeData2016/
      images/{training,validation}/NAME.jpg
      annotations/{training,validation}/NAME.png              0 other, 1 to 150 the classes

and writes

      annotations_detectron2/{training,validation}/NAME.png   0 to 149, and 255 for other

Right results are left as they are, so an interrupted run can be repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from preparation import IGNORED, Split, find_files, main, pair_files, to_classes
from sgr.data.truth.image_files import read_labels

NUM_IMAGES = {"training": 20210, "validation": 2000}
# Class of each official label.
CLASSES = np.array([IGNORED, *range(150)], np.int16)


def find_splits(root: Path, *, partial: bool = False) -> list[Split]:
    folder = root / "ADEChallengeData2016"
    return [
        pair_files(
            f"{folder}, {split}",
            find_files(folder / "images" / split, ".jpg"),
            find_files(folder / "annotations" / split, ".png"),
            lambda key, split=split: folder / "annotations_detectron2" / split / f"{key}.png",
            expected=count,
            partial=partial,
        )
        for split, count in NUM_IMAGES.items()
    ]


def read(file: Path) -> np.ndarray:
    return to_classes(read_labels(str(file)), CLASSES, file)


if __name__ == "__main__":
    sys.exit(main(find_splits, read, description=__doc__))
