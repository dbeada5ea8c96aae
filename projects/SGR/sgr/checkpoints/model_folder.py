"""A trained model as a folder: what is in it, and how it is read.

    model.safetensors   the parameters, without code
    config.yaml         the full config
    model.json          names and colours of the classes, preparation of the images, metrics
    README.md           the model card

The name of a folder stands for its config where a config is asked for, and for its weights where
weights are. :func:`sgr.packaging.package_model` writes one.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .backbone_file import backbone_content, extract_backbone

CONFIG, WEIGHTS, DESCRIPTION, CARD = "config.yaml", "model.safetensors", "model.json", "README.md"
LICENSE = "LICENSE"  # only where it is a text of its own
FILES = (CONFIG, WEIGHTS, DESCRIPTION, CARD, LICENSE)
FORMAT = 1  # the version of DESCRIPTION
# What DESCRIPTION must have.
_KEYS = {
    "classes": dict,
    "num_classes": dict,
    "settings": dict,
    "metrics": dict,
    "sha256": str,
    "source": str,
}
# What its "classes" may have.
_EXPECTED_CLASSES = {
    **dict.fromkeys(("stuff_classes", "thing_classes"), "must be a list of names"),
    **dict.fromkeys(
        ("stuff_colors", "thing_colors"), "must be a list of colours, each of three numbers to 255"
    ),
    "things": "must be a list of numbers of classes",
    "class_tree": "",
}


def config_of(folder: str | os.PathLike) -> str:
    """The config file of a model folder.

    Raises:
        ValueError: the folder is no model folder, or damaged.
    """
    return str(_folder_of(folder) / CONFIG)


def weights_of(folder: str | os.PathLike) -> str:
    """The file of the weights of a model folder, after a look at all of its bytes.

    Raises:
        ValueError: the folder is no model folder, or damaged, or the weights are those of another.
    """
    path = _folder_of(folder)
    description = read_description(path)
    found = digest(path / WEIGHTS)
    if found != description["sha256"]:
        raise ValueError(
            f"{str(path / WEIGHTS)!r} are not the weights that {DESCRIPTION} describes (SHA-256 "
            f"{found[:12]}... instead of {description['sha256'][:12]}...): the file is damaged or "
            "of another model; copy the whole folder again, or package the model anew by "
            "tools/package_model.py"
        )
    return str(path / WEIGHTS)


def folder_with(file: str | os.PathLike) -> Path | None:
    """The model folder that a config or a file of weights lies in; None for other files."""
    path = Path(file)
    is_part = path.name in (CONFIG, WEIGHTS) and (path.parent / DESCRIPTION).is_file()
    return path.parent if is_part else None


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """What ``model.json`` says; :func:`sgr.packaging.package_model` writes it.

    Raises:
        ValueError: it is damaged, or of a format that this release does not know.
    """
    path = Path(folder) / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}; copy the folder again") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{str(path)!r} does not describe a model: it has no format")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} is of format {content['format']!r}; this release knows only format "
            f"{FORMAT}: use the release that wrote it, or a newer one"
        )
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(
                f"{str(path)!r} is damaged: its {key} is {content.get(key)!r}; copy the folder "
                "again, or package the model anew"
            )
    for key, value in content["classes"].items():
        expected = _EXPECTED_CLASSES.get(key, "not known to this release")
        if key not in _EXPECTED_CLASSES or not _is_of_classes(key, value):
            raise ValueError(
                f"{str(path)!r} is damaged: {key} in its classes is {reprlib.repr(value)}, and "
                f"{expected}; copy the folder again, or package the model anew"
            )
    return content


def _is_of_classes(key: str, value: Any) -> bool:
    if key == "class_tree":  # whoever uses it reads it, with its own errors
        return True
    if not isinstance(value, list):
        return False
    if key == "things":
        return all(_is_number(one) for one in value)
    if key.endswith("_classes"):
        return all(isinstance(one, str) for one in value)
    return all(
        isinstance(color, list)
        and len(color) == 3
        and all(_is_number(one) and one <= 255 for one in color)
        for color in value
    )


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int


def check_num_classes_of(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Check that the config of a folder has as many classes as its model.

    Args:
        config: key -> value, such as ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.

    Raises:
        ValueError: it has others.
    """
    for key, number in read_description(folder)["num_classes"].items():
        if config.get(key) != number:
            raise ValueError(
                f"{str(Path(folder) / CONFIG)!r} has {key} {config.get(key)}, but the model has "
                f"{number} classes ({DESCRIPTION}): the files are of two models; copy the whole "
                "folder again, or package the model anew by tools/package_model.py"
            )


def folder_content(folder: str | os.PathLike, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint of a training would hold, of the weights of a folder."""
    description = read_description(folder)
    names = {key: description["classes"].get(key) for key in ("stuff_classes", "thing_classes")}
    return {
        "model": tensors,
        "description": description,
        # As a training leaves it, to be compared with the classes of datasets.
        "trainer": {"classes": {key: value for key, value in names.items() if value}},
    }


def backbone_view(model: nn.Module, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The backbone of a model folder, for another kind of model.

    Returns:
        Content as :func:`~sgr.checkpoints.backbone_file.save_backbone` writes it; None if the
        checkpoint is no model folder, has no backbone, or more of it than the backbone has a place
        in the model.
    """
    description = checkpoint.get("description")
    if description is None:
        return None
    own = model.state_dict().keys()
    heads = [name for name in checkpoint["model"] if not name.startswith("backbone.")]
    if any(name in own for name in heads) or len(heads) == len(checkpoint["model"]):
        return None
    return backbone_content(
        extract_backbone(checkpoint),
        source=description["source"],
        settings=description["settings"],
    )


def digest(file: Path) -> str:
    """The SHA-256 of a file; about half a second for a gigabyte."""
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _folder_of(folder: str | os.PathLike) -> Path:
    """The folder, which has all the files of a model."""
    path = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS, DESCRIPTION) if not (path / name).is_file()]
    if DESCRIPTION in missing:
        checkpoints = sorted(each.name for each in path.glob("*.pth"))
        hint = f"; did you mean {path / checkpoints[-1]}?" if checkpoints else ""
        raise ValueError(
            f"{str(folder)!r} is a folder, but no model folder: it has no {DESCRIPTION}{hint} "
            "(tools/package_model.py makes one)"
        )
    if missing:
        raise ValueError(
            f"the model folder {str(folder)!r} has no {' and no '.join(missing)}: copy the whole "
            "folder again, or package the model anew by tools/package_model.py"
        )
    return path
