"""Finds the faults of a file of annotations in COCO's format.

Detectron2's loader stops at the first record that it cannot read, often without naming it. The file
is checked here only after that, so a correct file is not read twice.
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


@contextmanager
def explain_coco_errors(dataset_names: Iterable[str]) -> Iterator[None]:
    """Load registered datasets in this context to get errors that name the faulty records.

    Args:
        dataset_names: the datasets. If loading fails, the ``json_file`` in their metadata is
            checked.

    Raises:
        ValueError: loading failed. The message names the records that are not in COCO's format, or
            else the files. An OSError is not changed, nor is any error if a dataset has no
            ``json_file``.
    """
    try:
        yield
    except OSError:
        raise  # it names the file
    except Exception as error:
        files = {name: MetadataCatalog.get(name).get("json_file") for name in dataset_names}
        for name, json_file in files.items():
            faults = []
            with suppress(Exception):  # the content may have any form
                faults = coco_file_faults(json_file) if json_file else []
            if faults:
                raise ValueError(
                    f"the dataset {name} cannot be loaded from {json_file}; correct or remove "
                    f"these records:\n{list_faults(faults)}"
                ) from error
        if not files or not all(files.values()):
            raise
        which = ", or ".join(
            f"the dataset {name} cannot be loaded from {file}" for name, file in files.items()
        )
        raise ValueError(f"{which}: {type(error).__name__}: {error}") from error


def coco_file_faults(json_file: str) -> list[str]:
    """Read a file, and check it with :func:`coco_content_faults`.

    A missing file has no faults: another loader may read it from elsewhere than a disk.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return []
    except ValueError as error:
        return [f"the file is not JSON: {error}"]
    return coco_content_faults(content)


def coco_content_faults(content: Any) -> list[str]:
    """Find the records that Detectron2's ``load_coco_json`` cannot read.

    If some records do not have COCO's form, only these are reported, because the others refer to
    them. This takes a few microseconds per annotation.

    Args:
        content: the content of the JSON file.

    Returns:
        A sentence for each fault.
    """
    return list(_faults_of_form(content)) or list(_faults(content))


def _faults_of_form(content: Any) -> Iterator[str]:
    """Values that are missing or of a wrong type."""
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
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                yield f"{key}[{index}] is a {type(record).__name__}, not a record"
                continue
            missing = [name for name in needed if name not in record]
            if missing:
                yield f"{key}[{index}] has no {', '.join(missing)}, only {sorted(record)}"
            for name in needed:
                if isinstance(record.get(name, 0), (list, dict, type(None))):
                    yield f"{key}[{index}] has a {type(record[name]).__name__} as {name}"


def _faults(content: dict) -> Iterator[str]:
    """Wrong values in records of the right form."""
    annotations = content.get("annotations", [])
    for id, count in Counter(annotation["id"] for annotation in annotations).items():
        if count > 1:
            yield f"{count} annotations have the id {id}"
    categories = {category["id"] for category in content["categories"]}
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
