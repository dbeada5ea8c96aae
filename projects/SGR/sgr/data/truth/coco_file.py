"""What is wrong with a file of annotations in COCO's format.

Detectron2's loader stops at the first record that it cannot read, often without naming it. Only
then is the file looked at here, so a sound one is not read twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from detectron2.data import MetadataCatalog

from ..faults import list_faults
from .annotations import segmentation_fault

__all__ = ["coco_content_faults", "coco_file_faults", "explain_coco_errors"]


@contextmanager
def explain_coco_errors(dataset_names: Iterable[str]) -> Iterator[None]:
    """A context for loading registered datasets, whose errors name the records at fault.

    Args:
        dataset_names: of registered datasets; those with a ``json_file`` in their metadata are
            looked at if the loading fails.

    Raises:
        ValueError: the loading failed. The message names the records that are not in COCO's
            format; where there are none, the files that it may be about. An OSError is left as it
            is, and so is any error where a dataset is not of such a file, or there is none.
    """
    try:
        yield
    except OSError:
        raise  # it names the file
    except Exception as error:
        files = {name: MetadataCatalog.get(name).get("json_file") for name in dataset_names}
        for name, json_file in files.items():
            faults = []
            with suppress(Exception):  # of another form than any that is known here
                faults = coco_file_faults(json_file) if json_file else []
            if faults:
                raise ValueError(
                    f"the dataset {name} cannot be loaded from {json_file}; correct or remove what "
                    f"follows:\n{list_faults(faults)}"
                ) from error
        if not files or not all(files.values()):
            raise
        which = ", or ".join(
            f"the dataset {name} cannot be loaded from {file}" for name, file in files.items()
        )
        raise ValueError(f"{which}: {type(error).__name__}: {error}") from error


def coco_file_faults(json_file: str) -> list[str]:
    """What :func:`coco_content_faults` says of a file; costs reading it again.

    None where there is no such file.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return []  # some other loader's, from elsewhere than a disk
    except ValueError as error:
        return [f"the file is not JSON: {error}"]
    return coco_content_faults(content)


def coco_content_faults(content: Any) -> list[str]:
    """The records that Detectron2's ``load_coco_json`` cannot read, each in a sentence.

    Where some are of another form than COCO's, only these, since the others refer to them. Costs a
    few microseconds per annotation.

    Args:
        content: what the JSON file holds.
    """
    return list(_faults_of_form(content)) or list(_faults(content))


def _faults_of_form(content: Any) -> Iterator[str]:
    """What is missing, or of a type that no record has."""
    if not isinstance(content, dict):
        yield f"the file holds a {type(content).__name__}, not images, annotations and categories"
        return
    for key, needed in (
        ("images", ("id", "file_name", "height", "width")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id")),
    ):
        records = content.get(key, [])
        if not isinstance(records, list):
            yield f"{key} is a {type(records).__name__}, not a list"
            continue
        if not records and key != "annotations":
            yield f"the file has no {key}"
        for index, each in enumerate(records):
            if not isinstance(each, dict):
                yield f"{key}[{index}] is a {type(each).__name__}, not a record"
                continue
            missing = [name for name in needed if name not in each]
            if missing:
                yield f"{key}[{index}] has no {', '.join(missing)}, only {sorted(each)}"
            for name in needed:
                if isinstance(each.get(name, 0), (list, dict, type(None))):
                    yield f"{key}[{index}] has a {type(each[name]).__name__} as {name}"


def _faults(content: dict) -> Iterator[str]:
    """What is wrong in records that have what they need."""
    annotations = content.get("annotations", [])
    for id, count in Counter(each["id"] for each in annotations).items():
        if count > 1:
            yield f"{count} annotations have the id {id}"
    categories = {each["id"] for each in content["categories"]}
    for annotation in annotations:
        fault = _fault(annotation, categories)
        if fault:
            yield f"annotation {annotation['id']} of image {annotation['image_id']} {fault}"


def _fault(annotation: dict, categories: set) -> str | None:
    category = annotation["category_id"]
    if category not in categories:
        return f"has category_id {category}, which is not among the categories"
    if annotation.get("ignore", 0):
        return 'is marked "ignore", which Detectron2 does not know; "iscrowd": 1 may do instead'
    if "bbox" in annotation and not annotation["bbox"]:
        return "has an empty bbox"
    if annotation.get("segmentation"):
        return segmentation_fault(annotation["segmentation"])
    return None
