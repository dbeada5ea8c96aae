"""What is wrong with a file of annotations in COCO's format.

Detectron2's loader stops at the first record that it cannot read, often without naming it. Only
then is the file looked at here, so a sound one is not read twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.data import MetadataCatalog

from .faults import list_faults
from .segments import segmentation_fault

__all__ = ["coco_file_faults", "explain_coco_errors"]

@contextmanager
def explain_coco_errors(dataset_names: Iterable[str]) -> Iterator[None]:
    """A context for loading registered datasets, whose errors name the records at fault.

    Args:
        dataset_names: of registered datasets; those with a ``json_file`` in their metadata are
            looked at if the loading fails.

    Raises:
        ValueError: the loading failed, and the records named are not in COCO's format. Otherwise
            the error of the loading is left as it is.
    """
    try:
        yield
    except FileNotFoundError:
        raise  # it names the file
    except Exception as error:
        for name in dataset_names:
            json_file = MetadataCatalog.get(name).get("json_file")
            faults = coco_file_faults(json_file) if json_file else []
            if faults:
                raise ValueError(
                    f"the dataset {name} cannot be loaded from {json_file}; correct or remove what "
                    f"follows:\n{list_faults(faults)}"
                ) from error
        raise


def coco_file_faults(json_file: str) -> list[str]:
    """The records of a file that Detectron2's ``load_coco_json`` cannot read, each in a sentence.

    Costs reading the file again and a few microseconds per annotation.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return []  # some other loader's, from elsewhere than a disk
    except ValueError as error:
        return [f"the file is not JSON: {error}"]
    return list(_faults(content))


def _faults(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"the file holds a {type(content).__name__}, not images, annotations and categories"
        return
    for key in ("images", "categories"):
        if not content.get(key):
            yield f"the file has no {key}"
    for key, needed in (
        ("images", ("id", "file_name", "height", "width")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id")),
    ):
        for index, each in enumerate(content.get(key, [])):
            missing = [name for name in needed if name not in each]
            if missing:
                yield f"{key}[{index}] has no {', '.join(missing)}, only {sorted(each)}"
    annotations = content.get("annotations", [])
    for id, count in Counter(each.get("id") for each in annotations).items():
        if count > 1 and id is not None:
            yield f"{count} annotations have the id {id}"
    categories = {each.get("id") for each in content.get("categories", [])}
    for annotation in annotations:
        fault = _fault(annotation, categories)
        if fault:
            yield (
                f"annotation {annotation.get('id')} of image {annotation.get('image_id')} {fault}"
            )


def _fault(annotation: dict, categories: set) -> str | None:
    category = annotation.get("category_id")
    if "category_id" in annotation and category not in categories:
        return f"has category_id {category}, which is not among the categories"
    if annotation.get("ignore", 0):
        return "is marked \"ignore\", which Detectron2 does not know; \"iscrowd\": 1 may do instead"
    if "bbox" in annotation and not annotation["bbox"]:
        return "has an empty bbox"
    if annotation.get("segmentation"):
        return segmentation_fault(annotation["segmentation"])
    return None
