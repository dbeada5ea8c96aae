"""The results of many images in one file."""

from __future__ import annotations

import json
import operator
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.files import draft_of

_KINDS = "instances", "panoptic"


def join_results(folder: Path, *, progress: bool = False) -> list[Path]:
    """Join the files of single images that :meth:`Result.save` has written, in COCO's formats.

    ``instances/*.json`` become ``instances.json``, and ``panoptic/*.json`` become
    ``panoptic.json``, whose maps stay in the folder ``panoptic``. Images get numbers in the order
    of their paths.

    Args:
        folder: where the results are. Files in subfolders are joined, too.
        progress: show a progress bar, on the standard error.

    Returns:
        The files that it wrote.

    Raises:
        FileNotFoundError: there are no such results.
        ValueError: a file is damaged, or has other classes than those before it.

    Cost: one image is held at a time.
    """
    written = []
    for kind in _KINDS:
        files = sorted((folder / kind).rglob("*.json"))
        if files:
            _join(files, folder / kind, tqdm(files, kind, unit="image", disable=not progress))
            written.append(folder / f"{kind}.json")
    if not written:
        raise FileNotFoundError(
            f"{folder} has no results to join: neither instances/*.json nor panoptic/*.json, which "
            "models of instance and panoptic segmentation write"
        )
    return written


def _join(files: list[Path], folder: Path, bar: tqdm) -> None:
    categories: dict[int, dict[str, Any]] = {}
    num_annotations = 0
    with (
        draft_of(folder.with_suffix(".json")) as draft,
        draft.open("w", encoding="utf-8") as target,
        # Of the annotations, which come after all images.
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder.parent) as rest,
    ):
        target.write('{"images": [\n')
        for number, file in enumerate(bar, start=1):
            try:
                image, found, classes = _read(file, file.parent.relative_to(folder))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file} is no result of one image, or is damaged: {error!r}; remove it, and "
                    "predict its image again"
                ) from error
            _check_classes(categories or classes, classes, file)
            for key, one in classes.items():
                # Without metadata, only its segments tell that a class is a thing.
                if key not in categories or one.get("isthing"):
                    categories[key] = one
            image["id"] = number
            target.write((",\n" if number > 1 else "") + json.dumps(image))
            for annotation in found:
                num_annotations += 1
                annotation["image_id"] = number
                if "segments_info" not in annotation:
                    annotation["id"] = num_annotations
                rest.write((",\n" if num_annotations > 1 else "") + json.dumps(annotation))
        target.write('\n],\n"annotations": [\n')
        rest.seek(0)
        shutil.copyfileobj(rest, target)
        target.write(f'\n],\n"categories": {json.dumps(list(categories.values()))}}}\n')


def _read(file: Path, parent: Path) -> tuple[dict, list[dict], dict[int, dict]]:
    """The image of a file, its annotations and its classes; paths become those in ``parent``."""
    content = json.loads(file.read_text(encoding="utf-8"))
    (image,), found = content["images"], list(content["annotations"])
    classes = {operator.index(one["id"]): one for one in content["categories"]}
    for one in (image, *found, *classes.values()):
        if not isinstance(one, dict):
            raise TypeError(f"{one!r} is no object")
    for one in (image, *(one for one in found if "segments_info" in one)):
        one["file_name"] = (parent / one["file_name"]).as_posix()
    return image, found, classes


def _check_classes(known: dict[int, dict], classes: dict[int, dict], file: Path) -> None:
    for number in sorted(known.keys() | classes.keys()):
        before, now = (names.get(number, {}).get("name") for names in (known, classes))
        if before != now:
            raise ValueError(
                f"{file} has other classes than the files before it: class {number} is {now!r} "
                f"instead of {before!r}; results of two models cannot be joined"
            )
