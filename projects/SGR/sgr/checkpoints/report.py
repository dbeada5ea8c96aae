"""A table of what does not fit between a checkpoint and a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate
from torch import nn

Shape = tuple[int, ...]


def report_differences(
    model: nn.Module,
    file_shapes: Mapping[str, Shape],
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Shape, Shape]],
) -> str | None:
    """Describe the differences between a checkpoint and a model in one table.

    A module of which all tensors are missing, or unexpected, is one row, for example
    ``sem_seg_head.predictor.* (54 tensors)``. Names that differ only in numbers share a row:
    ``backbone.norm*.weight (4 tensors)``.

    Args:
        model: the model to load into.
        file_shapes: name -> shape of all tensors of the checkpoint.
        missing: names in the model that the checkpoint does not have. A parameter that the
            checkpoint has under another of its names is not counted.
        unexpected: names in the checkpoint that the model does not have.
        mismatched: name, shape in the checkpoint, shape in the model. Their names may be among the
            missing ones.

    Returns:
        The table; None if there is no difference.
    """
    tensors = model.state_dict(keep_vars=True)
    model_shapes = {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
    differing = {name: (in_file, in_model) for name, in_file, in_model in mismatched}
    absent = set(missing) - differing.keys()
    loaded = {id(value) for name, value in tensors.items() if name not in absent}
    absent = {name for name in absent if id(tensors[name]) not in loaded}
    shapes: dict[str, dict[str, tuple[Any, Any]]] = {
        "missing": {name: ("", model_shapes[name]) for name in tensors if name in absent},
        "unexpected": {name: (file_shapes.get(name, ""), "") for name in unexpected},
        "mismatched": differing,
    }
    universe: dict[str, Iterable[str]] = {"missing": tensors, "unexpected": file_shapes}
    rows = [
        (kind, label, *map(_join, zip(*(found[name] for name in names))))
        for kind, found in shapes.items()
        for label, names in _group(found, universe.get(kind, ())).items()
    ]
    headers = ("", "name", "shape in the file", "shape in the model")
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True) if rows else None


def _group(names: Iterable[str], universe: Iterable[str]) -> dict[str, list[str]]:
    """Label -> names. A label is a module as large as possible with no other name in it."""
    names = list(names)
    here, everywhere = (Counter(p for n in set(g) for p in _modules(n)) for g in (names, universe))
    groups: dict[str, list[str]] = {}
    for name in names:
        whole = (f"{m}.*" for m in _modules(name) if 1 < here[m] == everywhere[m])
        groups.setdefault(next(whole, name), []).append(name)
    alike: dict[str, list[str]] = {}
    for label in groups:
        alike.setdefault(re.sub(r"\d+", "#", label), []).append(label)
    merged = {}
    for labels in alike.values():
        names = [name for label in labels for name in groups[label]]
        parts = zip(*(re.split(r"(\d+)", label) for label in labels))
        label = "".join(part[0] if len(set(part)) == 1 else "*" for part in parts)
        merged[f"{label} ({len(names)} tensors)" if len(names) > 1 else label] = names
    return merged


def _modules(name: str) -> list[str]:
    """ "a.b.c" -> ["a", "a.b"]."""
    return [name[: dot.start()] for dot in re.finditer(r"\.", name)]


def _join(shapes: Iterable[Shape | str]) -> str:
    """The shape, or the first of several."""
    first, *others = dict.fromkeys(shapes)
    return f"{first}{', ...' if others else ''}"
