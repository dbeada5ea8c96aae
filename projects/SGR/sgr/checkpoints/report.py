"""A table of what of a checkpoint does not fit a model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate
from torch import nn

__all__ = ["report_differences"]

Shape = tuple[int, ...]


def report_differences(
    model: nn.Module,
    file_shapes: Mapping[str, Shape],
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Shape, Shape]],
) -> str | None:
    """Tell the differences between a checkpoint and a model as one table.

    Tensors that are missing, or unexpected, with all that lies beside them are one row, as
    ``sem_seg_head.predictor.* (54 tensors)``; so are those whose names differ in numbers only, as
    ``backbone.norm{0-3}.weight (4 tensors)``.

    Args:
        model: what is loaded into.
        file_shapes: name -> shape of all tensors of the checkpoint.
        missing: names in the model that the checkpoint does not have. A parameter that the
            checkpoint has under another of its names is not counted.
        unexpected: names in the checkpoint that the model does not have.
        mismatched: name, shape in the checkpoint, shape in the model. Their names may be among the
            missing ones.

    Returns:
        The table, None if there is nothing to tell.
    """
    tensors = model.state_dict(keep_vars=True)
    model_shapes = {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
    mismatched = {name: (in_file, in_model) for name, in_file, in_model in mismatched}
    missing = set(missing) - mismatched.keys()
    loaded = {id(value) for name, value in tensors.items() if name not in missing}
    missing = [name for name in tensors if name in missing and id(tensors[name]) not in loaded]
    unexpected = list(unexpected)

    rows = []
    for label, names in _fold(missing, tensors):
        rows.append(("missing", label, "", _join(model_shapes[name] for name in names)))
    for label, names in _fold(unexpected, [*file_shapes, *unexpected]):
        shapes = (file_shapes[name] for name in names if name in file_shapes)
        rows.append(("unexpected", label, _join(shapes), ""))
    for label, names in _merge_numbers({name: [name] for name in mismatched}):
        in_file, in_model = zip(*(mismatched[name] for name in names))
        rows.append(("mismatched", label, _join(in_file), _join(in_model)))
    headers = ("", "name", "shape in the file", "shape in the model")
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True) if rows else None


def _fold(names: Sequence[str], universe: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group ``names`` under labels: as far up as nothing else of ``universe`` lies there."""
    here = Counter(prefix for name in set(names) for prefix in _prefixes(name))
    everywhere = Counter(prefix for name in set(universe) for prefix in _prefixes(name))
    groups = defaultdict(list)
    for name in names:
        whole = (p for p in _prefixes(name) if 1 < here[p] == everywhere[p])
        prefix = next(whole, None)
        groups[name if prefix is None else f"{prefix}.*"].append(name)
    return _merge_numbers(groups)


def _prefixes(name: str) -> list[str]:
    """ "a.b.c" -> ["a", "a.b"]."""
    return [name[: dot.start()] for dot in re.finditer(r"\.", name)]


def _merge_numbers(groups: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Merge groups whose labels differ in numbers only; give labels the count of their names."""
    alike = defaultdict(list)
    for label in groups:
        alike[re.sub(r"\d+", "#", label)].append(label)
    merged = []
    for labels in alike.values():
        names = [name for label in labels for name in groups[label]]
        columns = zip(*(map(int, re.findall(r"\d+", label)) for label in labels))
        numbers = iter([_range(sorted(set(column))) for column in columns])
        label = re.sub(r"\d+", lambda _, numbers=numbers: next(numbers), labels[0])
        merged.append((f"{label} ({len(names)} tensors)" if len(names) > 1 else label, names))
    return merged


def _range(numbers: Sequence[int]) -> str:
    """[3] -> "3", [0, 1, 2] -> "{0-2}", [0, 2] -> "{0,2}"."""
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def _join(shapes: Iterable[Shape]) -> str:
    """The shape, or the first of several."""
    shapes = list(dict.fromkeys(shapes))
    return f"{shapes[0]}{', ...' if len(shapes) > 1 else ''}" if shapes else ""
