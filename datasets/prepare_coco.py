#!/usr/bin/env python
"""Prepare COCO 2017 for training: check the download, and make label maps of stuff.

    python datasets/prepare_coco.py [--root ROOT] [--workers N] [--check] [--partial]

reads, under the root of all datasets,

    coco/
      {train,val}2017/NAME.jpg
      annotations/instances_{train,val}2017.json
      annotations/panoptic_{train,val}2017.json
      panoptic_{train,val}2017/NAME.png           colours are segments, R + 256 G + 65536 B

and writes

      panoptic_stuff_{train,val}2017/NAME.png     0 all things, 1 to 53 stuff, 255 unlabelled

Instances or panoptic segments may be absent. It prints which of them exist, and checks them.
Without panoptic segments nothing is written. With --partial, the JSON files may name fewer images
than the release, and a split without a folder of images is left out. All images that they name must
exist in any case, because training reads them.

The label maps are the same as those of Detectron2's own script. Right results are left as they are,
so an interrupted run can be repeated.

Reading the JSON files of the training images takes half a minute to minutes, and 4 GB of memory.
After that, an image takes about 10 ms on one core.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial as bind
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from preparation import IGNORED, Split, Task, main
from sgr.data.faults import Fault, FaultKind
from sgr.data.truth.coco_file import coco_content_faults
from sgr.data.truth.segments import read_segment_map

NUM_IMAGES = {"train2017": 118287, "val2017": 5000}
NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
THINGS = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
# Class of each category in the label maps.
STUFF = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]
CLASSES = dict.fromkeys(THINGS, 0) | {id: number for number, id in enumerate(STUFF, start=1)}
# The number of ids that a colour can store.
NUM_IDS = 256**3


class Segments(NamedTuple):
    """The segments of an image by its JSON file.

    Attributes:
        ids, categories: COCO's numbers of each segment.
        empty: whether the segment has no pixel.
    """

    ids: list[int]
    categories: list[int]
    empty: list[bool]


class Annotations(NamedTuple):
    """The content of a JSON file.

    Attributes:
        sizes: (height, width) of the images, by their file names.
        faults: the faults of the file.
        segments: in panoptic files, by the file names of the pictures.
    """

    sizes: dict[str, tuple[int, int]]
    faults: list[Fault]
    segments: dict[str, Segments]


def find_splits(root: Path, *, partial: bool = False) -> Iterator[Split]:
    # One split at a time: the JSON files of the training images need gigabytes while they are read.
    for split, count in NUM_IMAGES.items():
        yield find_split(root / "coco", split, count, partial)


def find_split(folder: Path, split: str, count: int, partial: bool) -> Split:
    name = f"{folder}, {split}"
    images, pictures = folder / split, folder / f"panoptic_{split}"
    instances_json = folder / "annotations" / f"instances_{split}.json"
    panoptic_json = folder / "annotations" / f"panoptic_{split}.json"
    if not any(images.glob("*.jpg")):
        if partial and not images.is_dir():
            return Split(name, [], [], [f"left out, because there is no folder {images}"])
        return Split(name, [], [Fault(f"{images} holds no images", FaultKind.UNREADABLE)])

    sizes: dict[str, tuple[int, int]] = {}
    segments: dict[str, Segments] = {}
    faults, notes = [], []
    if not instances_json.is_file() and not panoptic_json.is_file():
        faults.append(
            Fault(f"neither {instances_json} nor {panoptic_json} exists", FaultKind.UNREADABLE)
        )
    for what, file, look_at in (
        ("instances", instances_json, look_at_instances),
        ("panoptic segments", panoptic_json, look_at_segments),
    ):
        if not file.is_file():
            notes.append(f"no {what}, because there is no annotations/{file.name}")
            continue
        found = read_annotations(file, look_at)
        notes.append(f"{what} of {len(found.sizes)} images in annotations/{file.name}")
        faults += found.faults
        if not found.faults and len(found.sizes) < count and not partial:
            faults.append(
                Fault(
                    f"{file} names {len(found.sizes)} of the {count} images of the release; give "
                    "--partial if a part is enough",
                    FaultKind.RELEASE,
                )
            )
        faults += [
            Fault(f"{file} gives another size than {instances_json} for {image}", FaultKind.SIZE)
            for image, size in found.sizes.items()
            if sizes.get(image, size) != size
        ]
        sizes = found.sizes | sizes
        segments |= found.segments

    has_pictures = any(pictures.glob("*.png"))
    if panoptic_json.is_file() and not has_pictures:
        faults.append(
            Fault(
                f"{pictures} holds no pictures: unpack annotations/panoptic_{split}.zip, which is "
                f"in panoptic_annotations_trainval2017.zip, into {folder}",
                FaultKind.UNREADABLE,
            )
        )
    if has_pictures and not panoptic_json.is_file():
        message = f"{panoptic_json} does not exist, although {pictures} does"
        faults.append(Fault(message, FaultKind.UNREADABLE))
    labels = {file: pictures / file for file in segments} if has_pictures else {}
    tasks = []
    for image in sorted(sizes):
        picture = picture_of(image)
        target = folder / f"panoptic_stuff_{split}" / picture
        tasks.append(Task(images / image, labels.get(picture), target, size=sizes[image]))
    return Split(name, tasks, faults, notes, bind(read_labels_of_segments, segments))


def read_annotations(
    file: Path, look_at: Callable[[Path, dict[str, Any]], Annotations]
) -> Annotations:
    """Read and check a JSON file; ``look_at`` makes the annotations of its content, or raises."""
    print(f"reading {file.parent.name}/{file.name}", flush=True)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise ValueError(f"it has no list of {key}")
        return look_at(file, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{file} cannot be read, it may be damaged: {type(error).__name__}: {error}"
        return Annotations({}, [Fault(message, FaultKind.UNREADABLE)], {})


def look_at_instances(file: Path, content: dict[str, Any]) -> Annotations:
    faults = [
        Fault(f"{file}: {fault}", FaultKind.ANNOTATIONS) for fault in coco_content_faults(content)
    ]
    if faults:
        return Annotations({}, faults, {})
    faults = [*of_other_categories(file, content, THINGS), *of_unknown_images(file, content)]
    return Annotations(sizes_of(content), faults, {})


def look_at_segments(file: Path, content: dict[str, Any]) -> Annotations:
    sizes = sizes_of(content)
    segments = {}
    for annotation in content["annotations"]:
        infos = annotation["segments_info"]
        segments[text(annotation, "file_name")] = Segments(
            [number(info, "id", NUM_IDS) for info in infos],
            [number(info, "category_id") for info in infos],
            [info.get("area") == 0 for info in infos],
        )
    faults = [*of_other_categories(file, content, NAMES), *of_unknown_images(file, content)]
    counts = Counter(annotation["file_name"] for annotation in content["annotations"])
    faults += [
        Fault(f"{file} has {count} annotations of {picture}", FaultKind.RECORD)
        for picture, count in counts.items()
        if count > 1
    ]
    faults += [
        Fault(f"{file} has no segments of {image}", FaultKind.SEGMENTS)
        for image in sizes
        if picture_of(image) not in segments
    ]
    return Annotations(sizes, faults, segments)


def sizes_of(content: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        text(image, "file_name"): (number(image, "height"), number(image, "width"))
        for image in content["images"]
    }


def of_other_categories(file: Path, content: dict[str, Any], names: dict[int, str]) -> list[Fault]:
    if {category["id"]: category["name"] for category in content["categories"]} == names:
        return []
    message = f"{file}: the categories are not COCO's {len(names)}"
    message += "; register data of your own under names of their own"
    return [Fault(message, FaultKind.RELEASE)]


def of_unknown_images(file: Path, content: dict[str, Any]) -> list[Fault]:
    known = {image["id"] for image in content["images"]}
    unknown = {annotation["image_id"] for annotation in content["annotations"]} - known
    return [
        Fault(f"{file} has annotations of image {id}, which it does not name", FaultKind.PAIRS)
        for id in sorted(unknown, key=str)
    ]


def picture_of(image: str) -> str:
    """The file name of an image's panoptic picture, and of its label map."""
    return f"{Path(image).stem}.png"


def text(record: dict[str, Any], key: str) -> str:
    """The value; raises ValueError, with the record, if it is missing or no string."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a string, in {record}")
    return value


def number(record: dict[str, Any], key: str, limit: int = 2**31) -> int:
    """The value; raises ValueError, with the record, if it is no integer in [0, limit)."""
    value = record.get(key)
    if type(value) is not int or not 0 <= value < limit:  # True is an int, too
        raise ValueError(f"{key} is {value!r}, not an integer from 0 to {limit - 1}, in {record}")
    return value


def read_labels_of_segments(segments: dict[str, Segments], file: Path) -> np.ndarray:
    """The label map of a panoptic picture.

    Raises:
        OSError: the picture is missing or damaged.
        ValueError: the picture and the JSON file differ in their segments, or COCO does not have a
            category.
    """
    ids, categories, empty = segments[file.name]
    if len(set(ids)) < len(ids):
        raise ValueError(f"several segments of {file} have the same id in the JSON file")
    unknown = [category for category in categories if category not in CLASSES]
    if unknown:
        which = ", ".join(map(str, unknown))
        raise ValueError(f"segments of {file} have categories that COCO does not have: {which}")
    if not file.is_file():
        raise FileNotFoundError(f"panoptic picture {file} does not exist")
    record = {"pan_seg_file_name": str(file), "segments_info": [{"id": id} for id in ids]}
    places = read_segment_map(record)  # -1 for pixels without a segment
    areas = np.bincount(places.ravel() + 1, minlength=len(ids) + 1)[1:]
    lost = [id for id, area, may_be in zip(ids, areas, empty) if not area and not may_be]
    if lost:
        which = ", ".join(map(str, lost))
        raise ValueError(f"panoptic picture {file} lacks the segments {which}")
    return np.array([*(CLASSES[category] for category in categories), IGNORED], np.uint8)[places]


if __name__ == "__main__":
    sys.exit(main(find_splits, description=__doc__))
