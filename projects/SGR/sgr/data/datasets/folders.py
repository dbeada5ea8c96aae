"""Registration of datasets of your own: a folder of images, a folder of label maps."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..class_tree import ClassTree
from ..colors import distinct_colors
from ..faults import list_values
from ..truth.image_files import read_labels
from .classes import PathLike, as_class_names, as_colors, check_ignore_label
from .image_folders import Folders, add_annotations

# Classes that are taken from label maps. A matrix of confusion has the square of their number.
_MOST_FOUND = 4096


def register_sem_seg(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    *,
    classes: Sequence[str] | PathLike | int | None = None,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
    tree: Any = None,
    label_suffix: str = "",
    list_file: PathLike | None = None,
    instances_json: PathLike | None = None,
) -> None:
    """Register images and label maps as a dataset for semantic segmentation.

    The files are read when the dataset is loaded. The label map of ``images/a/NAME.jpg`` is
    ``labels/a/NAME.png``, a single-channel or palette image with a label for each pixel.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        image_dir: folder of images (PNG, JPEG, BMP, TIFF, WebP...), possibly with subfolders.
        label_dir: folder of PNG files, one for each image.
        classes: names of the labels 0, 1, 2...: a list, or a text file with one per line; or their
            number, at least 2. None takes all labels up to the largest one that occurs. Then the
            first loading reads every label map, which takes some milliseconds each, in every
            process of a training. If two datasets do not have the same largest label, their classes
            differ.
        ignore_label: the label of unlabelled pixels.
        colors: (R, G, B) of each class, for pictures; None chooses them.
        tree: the superclasses, see :meth:`~sgr.data.class_tree.ClassTree.parse`.
        label_suffix: the end of a label map's name, after the name of the image. It is "_mask" if
            the label map of NAME.jpg is NAME_mask.png.
        list_file: a text file with the names of the images to take, one per line; so several
            datasets can share a folder. None takes all images.
        instances_json: annotations of things in COCO's format. With them, an evaluation measures
            S_I and D_I beside S_C and D_C.

    Raises:
        ValueError: a dataset of this name exists; there is a tree without classes; or see
            :func:`~.classes.as_class_names` and :meth:`~sgr.data.class_tree.ClassTree.parse`.
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
        tree=tree,
    )


def register_folders(
    datasets: Mapping[str, Folders],
    *,
    classes: Sequence[str] | None,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
    tree: Any = None,
    replaced: Collection[str] = (),
) -> None:
    """Register datasets with the same classes.

    Args:
        datasets: by name.
        classes: names; None takes the labels that occur in any of the datasets, when the first of
            them is loaded.
        ignore_label, colors, tree: see :func:`register_sem_seg`.
        replaced: names of datasets to remove, if there is no error.

    Raises:
        ValueError: a dataset of one of the names exists, and is not replaced; or see
            :func:`register_sem_seg`.
    """
    for name in datasets:
        if name in DatasetCatalog and name not in replaced:
            raise ValueError(
                f"there is a dataset {name!r} already; choose another name, or remove the old one "
                f"by DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r})"
            )
    for key, value in (("colors", colors), ("tree", tree)):
        if classes is None and value is not None:
            raise ValueError(f"{key} without classes: name the classes, too")
    if classes is not None:
        check_ignore_label(ignore_label, len(classes))
    if colors is not None:
        colors = as_colors(colors, len(classes or ()))
    if tree is not None:
        ClassTree.parse(tree, classes or ())
    for name in replaced:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name, folders in datasets.items():
        DatasetCatalog.register(name, partial(_load, name, dict(datasets)))
        metadata = MetadataCatalog.get(name)
        metadata.set(evaluator_type="sem_seg", ignore_label=ignore_label)
        if folders.takes_all:  # else readers of the folders would find other files, too
            metadata.set(image_root=str(folders.image_dir), sem_seg_root=str(folders.label_dir))
        if folders.instances_json is not None:
            metadata.set(json_file=str(folders.instances_json))
        if classes is not None:
            metadata.set(
                stuff_classes=list(classes),
                stuff_colors=colors or distinct_colors(len(classes)).tolist(),
            )
        if tree is not None:
            metadata.set(class_tree=tree)


def is_of_folders(name: str) -> bool:
    """Whether :func:`register_folders` has registered this dataset."""
    return getattr(DatasetCatalog.data.get(name), "func", None) is _load


def _load(name: str, datasets: Mapping[str, Folders]) -> list[dict]:
    """Load the records of a dataset, and find its classes if they are not known."""
    folders = datasets[name]
    records = folders.load_pairs()
    if MetadataCatalog.get(name).get("stuff_classes") is None:
        _find_classes(datasets)
    if folders.instances_json is not None:
        add_annotations(name, folders, records)
    return records


def _find_classes(datasets: Mapping[str, Folders]) -> None:
    """Set the classes of all datasets to the labels up to the largest one in their label maps."""
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
        largest = max(labels - {ignore_label}, default=0)
        if largest >= _MOST_FOUND:
            raise ValueError(
                f"no classes are named for {' and '.join(datasets)}, and {file} has the label "
                f"{largest}; name the classes, or their number, if it is one, "
                "or else correct the label map or set ignore_label"
            )
    labels.discard(ignore_label)
    found, names = sorted(labels), " and ".join(datasets)
    if len(found) < 2:
        raise ValueError(
            f"the label maps of {names} hold no two classes, but only the label(s) {found} and "
            f"ignore_label {ignore_label}; where a mask is drawn with 0 and 255, replace 255 by 1"
        )
    num_classes = found[-1] + 1
    check_ignore_label(ignore_label, num_classes)
    absent = sorted(set(range(num_classes)) - labels)
    # A warning, because the user can save this time, and wrong labels show here.
    logging.getLogger(__name__).warning(
        "No classes are named for %s: the largest label in %d label maps is %d, so there are %d "
        "classes%s. Name the classes, or their number, to save this reading at every start.",
        names,
        len(files),
        found[-1],
        num_classes,
        f" (without a pixel: {list_values(absent)})" if absent else "",
    )
    for name in datasets:
        MetadataCatalog.get(name).set(
            stuff_classes=as_class_names(num_classes),
            stuff_colors=distinct_colors(num_classes).tolist(),
        )
