"""Datasets of one's own: a folder of images, a folder of label maps."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from ..text_files import read_text
from ..truth.image_files import read_labels
from .registration import (
    IMAGE_SUFFIXES,
    IncompleteDataset,
    distinct_label_colors,
    load_sem_seg_pairs,
)

__all__ = ["Folders", "as_class_names", "is_of_folders", "register_folders", "register_sem_seg"]

PathLike = str | os.PathLike


@dataclass(frozen=True)
class Folders:
    """Where the images and the ground truth of one dataset lie.

    Attributes:
        image_dir: images, in subfolders too.
        label_dir: label maps, a PNG for each image, in the same subfolders.
        label_suffix: what a label map's name has behind that of its image, as "_mask" where that of
            NAME.jpg is NAME_mask.png.
        list_file: a text file with the names of the images to take, one per line, with or without
            ".jpg" etc.; paths in ``image_dir`` where there are subfolders. None takes all.
        share: (from, to), the part of the images to take, in [0, 1). An image's place in that range
            is a hash of its name: it does not change as others come and go.
        instances_json: annotations of things in COCO's format; images that it does not list have
            none. None for data without.
    """

    image_dir: Path
    label_dir: Path
    label_suffix: str = ""
    list_file: Path | None = None
    share: tuple[float, float] = (0.0, 1.0)
    instances_json: Path | None = None

    @property
    def takes_all(self) -> bool:
        """Whether all files in the folders are the dataset's."""
        return self.list_file is None and self.share == (0.0, 1.0)

    def load_pairs(self) -> list[dict]:
        """See :func:`~.registration.load_sem_seg_pairs`; without annotations.

        Raises:
            FileNotFoundError: a folder or the list is not there.
            IncompleteDataset: an image or a label map is not there.
            ValueError: the list, or the share, has no image; the list is not UTF-8; or images and
                label maps cannot be told apart.
        """
        for folder, what in ((self.image_dir, "images"), (self.label_dir, "label maps")):
            if not folder.is_dir():
                raise FileNotFoundError(f"the folder of {what} {folder} does not exist")
        if not self.label_suffix and self.image_dir.samefile(self.label_dir):
            raise ValueError(
                f"images and label maps lie in one folder, {self.image_dir}: a label_suffix must "
                "tell them apart, as _mask does where the label map of NAME.png is NAME_mask.png"
            )
        listed = None if self.list_file is None else _read_list(self.list_file)
        records = load_sem_seg_pairs(
            self.image_dir,
            self.label_dir,
            label_suffix=self.label_suffix,
            subfolders=True,
            keep=partial(self._is_taken, listed=listed),
        )
        missing = sorted((listed or set()) - {record["image_id"] for record in records})
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            where = f"of which {self.image_dir} has no image"
            raise IncompleteDataset(
                f"{self.list_file} lists {missing[0]}{more}, {where}",
                faults=[f"{self.list_file} lists {stem}, {where}" for stem in missing],
                records=records,
            )
        if not records:
            low, high = self.share
            raise ValueError(
                f"none of the images in {self.image_dir} falls into the share {low:g} to {high:g}: "
                "there are too few; take a larger share, or lists"
            )
        return records

    def _is_taken(self, stem: str, listed: Collection[str] | None) -> bool:
        if listed is not None and stem not in listed:
            return False
        digest = hashlib.blake2b(stem.encode(), digest_size=8).digest()
        return self.share[0] <= int.from_bytes(digest, "big") / 2**64 < self.share[1]


def register_sem_seg(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    *,
    classes: Sequence[str] | PathLike | int | None = None,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
    label_suffix: str = "",
    list_file: PathLike | None = None,
    instances_json: PathLike | None = None,
) -> None:
    """Register images and label maps as a dataset for semantic segmentation.

    The files are looked at when the dataset is loaded. The label map of ``images/a/NAME.jpg`` is
    ``labels/a/NAME.png``, a single-channel or palette image with a label for each pixel.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        image_dir: images (PNG, JPEG, BMP, TIFF, WebP), possibly in subfolders.
        label_dir: PNG files, one for each image.
        classes: names of the labels 0, 1, 2...: a list, or a text file with one per line; or how
            many there are, at least 2. None finds it out when the dataset is loaded for the first
            time: all labels up to the largest one. That reads every label map, some milliseconds
            each, in every process of a training; and where the largest label is missing in one of
            two datasets, they will differ.
        ignore_label: of pixels that are not labelled.
        colors: (R, G, B) of each class, for pictures; None for different ones.
        label_suffix: what the label map's name has behind the image's, as "_mask" where that of
            NAME.jpg is NAME_mask.png.
        list_file: a text file with the names of the images to take, one per line, for several
            datasets out of one folder; None takes all.
        instances_json: annotations of things in COCO's format; with them an evaluation measures
            S_I and D_I beside S_C and D_C.

    Raises:
        ValueError: a dataset of this name exists; or see :func:`as_class_names`.
        FileNotFoundError: ``classes`` is a file that does not exist.
    """
    folders = Folders(
        Path(image_dir),
        Path(label_dir),
        label_suffix=label_suffix,
        list_file=None if list_file is None else Path(list_file),
        instances_json=None if instances_json is None else Path(instances_json),
    )
    register_folders(
        {name: folders},
        classes=None if classes is None else as_class_names(classes),
        ignore_label=ignore_label,
        colors=colors,
    )


def register_folders(
    datasets: Mapping[str, Folders],
    *,
    classes: Sequence[str] | None,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
    replaced: Collection[str] = (),
) -> None:
    """Register datasets, by name, that have their classes in common.

    Args:
        classes: names; None finds them in the label maps of all the datasets when the first of
            them is loaded.
        ignore_label, colors: see :func:`register_sem_seg`.
        replaced: names of datasets that are removed, unless an error is raised.

    Raises:
        ValueError: a dataset of one of the names exists, and is not to be replaced; or see
            :func:`register_sem_seg`.
    """
    for name in datasets:
        if name in DatasetCatalog and name not in replaced:
            raise ValueError(
                f"there is a dataset {name!r} already; choose another name, or remove the old one "
                f"by DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r})"
            )
    if classes is None and colors is not None:
        raise ValueError("colors without classes: name the classes, too")
    if classes is not None:
        _check_ignored(ignore_label, len(classes))
    if colors is not None:
        colors = _as_colors(colors, len(classes))
    for name in replaced:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name, folders in datasets.items():
        DatasetCatalog.register(name, partial(_load, name, dict(datasets)))
        metadata = MetadataCatalog.get(name)
        metadata.set(evaluator_type="sem_seg", ignore_label=ignore_label)
        if folders.takes_all:  # else files that are not in the dataset would seem to be left out
            metadata.set(image_root=str(folders.image_dir), sem_seg_root=str(folders.label_dir))
        if folders.instances_json is not None:
            metadata.set(json_file=str(folders.instances_json))
        if classes is not None:
            metadata.set(
                stuff_classes=list(classes),
                stuff_colors=colors or distinct_label_colors(len(classes)),
            )


def is_of_folders(name: str) -> bool:
    """Whether a dataset has been registered by :func:`register_folders`."""
    return getattr(DatasetCatalog.data.get(name), "func", None) is _load


def as_class_names(classes: Sequence[str] | PathLike | int) -> list[str]:
    """Names of classes in any form in which they are given.

    Args:
        classes: a list, a text file with one name per line, or a number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is missing, twice there or no text; there are not two; the file is not
            UTF-8; or what is given is of another form.
    """
    if isinstance(classes, int) and not isinstance(classes, bool):
        if classes < 2:
            raise ValueError(f"the number of classes is {classes}, and must be at least 2")
        return [f"class {label}" for label in range(classes)]
    where = "classes"
    if isinstance(classes, (str, os.PathLike)):
        where = str(classes)
        if not Path(classes).is_file():
            raise FileNotFoundError(f"there is no file of class names {where}")
        classes = read_text(classes).rstrip().split("\n")
    if isinstance(classes, (Mapping, bool)) or not isinstance(classes, Sequence):
        raise ValueError(
            "classes must be a list of names, a text file with one name per line, or a number; got "
            f"{classes!r}"
        )
    names = []
    for label, name in enumerate(classes):
        if not isinstance(name, str):
            raise ValueError(
                f"the name of class {label} in {where} is {name!r}, a {type(name).__name__}; "
                "put it in quotes"
            )
        name = name.strip()
        if not name:
            raise ValueError(f"the name of class {label} in {where} is empty")
        if name in names:
            first = names.index(name)
            raise ValueError(f"{where} names {name!r} twice: classes {first} and {label}")
        names.append(name)
    if len(names) < 2:
        # There would be nothing to tell apart, since pixels without a class are left out.
        raise ValueError(
            f"{where} names only {names}, and must name at least 2; what is around the things of "
            "one class is a class as well, such as background"
        )
    return names


def _as_colors(colors: Sequence[Sequence[int]], num_classes: int) -> list[tuple[int, ...]]:
    if len(colors) != num_classes:
        raise ValueError(f"there are {len(colors)} colors for {num_classes} classes")
    for label, color in enumerate(colors):
        if not isinstance(color, (Sequence, np.ndarray)) or not (
            len(color) == 3 and all(_is_byte(part) for part in color)
        ):
            raise ValueError(
                f"the color of class {label} is {color!r}, not three integers of 0 to 255"
            )
    return [tuple(map(int, color)) for color in colors]


def _is_byte(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value <= 255


def _check_ignored(ignore_label: int, num_classes: int) -> None:
    if 0 <= ignore_label < num_classes:
        raise ValueError(
            f"ignore_label is {ignore_label}, which is one of the {num_classes} classes (0 to "
            f"{num_classes - 1}); classes count from 0 on, so where 0 means unlabelled in the "
            "files, subtract 1 from the labels and let 0 become 255"
        )


def _load(name: str, datasets: Mapping[str, Folders]) -> list[dict]:
    """Records of a dataset; first, its classes where they are not known."""
    folders = datasets[name]
    records = folders.load_pairs()
    if MetadataCatalog.get(name).get("stuff_classes") is None:
        _find_classes(datasets)
    if folders.instances_json is not None:
        _add_annotations(name, folders, records)
    return records


def _find_classes(datasets: Mapping[str, Folders]) -> None:
    """Set the classes of all datasets, as many as their label maps have labels.

    Reads every label map once.
    """
    ignore_label = MetadataCatalog.get(next(iter(datasets))).ignore_label
    # Datasets may have files in common.
    files = {
        record["sem_seg_file_name"]
        for folders in datasets.values()
        for record in folders.load_pairs()
    }
    labels: set[int] = set()
    for file in sorted(files):
        labels.update(np.unique(read_labels(file)).tolist())
    labels.discard(ignore_label)
    found, names = sorted(labels), " and ".join(datasets)
    if len(found) < 2:
        raise ValueError(
            f"the label maps of {names} hold no two classes, but only the label(s) {found} and "
            f"ignore_label {ignore_label}; where a mask is drawn with 0 and 255, replace 255 by 1"
        )
    num_classes = found[-1] + 1
    _check_ignored(ignore_label, num_classes)
    absent = sorted(set(range(num_classes)) - labels)
    # Not only for information: whoever reads it can save the time, and wrong labels show here.
    logging.getLogger(__name__).warning(
        "No classes are named for %s: the largest label in %d label maps is %d, so there are %d "
        "classes%s. Naming them, or their number, saves this reading at every start.",
        names,
        len(files),
        found[-1],
        num_classes,
        f" (without a pixel: {_shown(absent)})" if absent else "",
    )
    for name in datasets:
        MetadataCatalog.get(name).set(
            stuff_classes=as_class_names(num_classes),
            stuff_colors=distinct_label_colors(num_classes),
        )


def _add_annotations(name: str, folders: Folders, records: list[dict]) -> None:
    """Add size and instances to records, from the file of annotations; costs reading it."""
    if not folders.instances_json.is_file():
        raise FileNotFoundError(f"there is no file of instances {folders.instances_json}")
    # The name makes it number the categories from 0, and put them into the metadata.
    of_file = {
        os.path.normpath(each["file_name"]): each
        for each in load_coco_json(str(folders.instances_json), str(folders.image_dir), name)
    }
    listed = 0
    for record in records:
        annotated = of_file.get(os.path.normpath(record["file_name"]))
        record["annotations"] = []
        if annotated is not None:
            listed += 1
            record.update({key: annotated[key] for key in ("annotations", "height", "width")})
    if not listed:
        theirs, ours = (
            repr(os.path.relpath(files[0], folders.image_dir)) if files else "nothing"
            for files in (list(of_file), [record["file_name"] for record in records])
        )
        raise ValueError(
            f"{folders.instances_json} lists none of the {len(records)} images of {name}; its "
            f"file_name is {theirs}, for instance, and theirs {ours}"
        )


def _read_list(file: Path) -> set[str]:
    """The stems in a list of images."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no list of images {file}")
    stems = set()
    for line in read_text(file).splitlines():
        name = line.strip().replace("\\", "/").removeprefix("./")
        if name:
            suffix = Path(name).suffix
            stems.add(name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name)
    if not stems:
        raise ValueError(f"the list of images {file} is empty")
    return stems


def _shown(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
