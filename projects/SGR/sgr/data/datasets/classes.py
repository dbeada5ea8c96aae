"""Names, colours and ignore label of the classes of a dataset of your own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np

from ..faults import shorten
from ..texts import read_text

MAX_CLASSES = 65536

PathLike = str | os.PathLike


def number_names(count: int) -> list[str]:
    """Names for classes of which only the number is known."""
    return [f"class {label}" for label in range(count)]


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are of the form of :func:`number_names`, or there are none."""
    return all(re.fullmatch(r"class \d+", name) for name in names)


def as_class_names(classes: Sequence[str] | PathLike | int) -> list[str]:
    """The names of classes.

    Args:
        classes: a list, a text file with one name per line, or the number of classes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name is empty, no text, or used twice; there are fewer than two classes; the
            file is not UTF-8; or ``classes`` has another form.
    """
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 2 <= classes <= MAX_CLASSES:
            raise ValueError(
                f"the number of classes is {shorten(classes)}, and must be at least 2 and at most "
                f"{MAX_CLASSES}, the labels that a PNG file can have"
            )
        return number_names(classes)
    where = "classes"
    if isinstance(classes, (str, os.PathLike)):
        where = str(classes)
        if not Path(classes).is_file():
            raise FileNotFoundError(f"there is no file of class names {where}")
        classes = read_text(classes).rstrip().split("\n")
    if isinstance(classes, (Mapping, bool)) or not isinstance(classes, Sequence):
        raise ValueError(
            "classes must be a list of names, a text file with one name per line, or a number; got "
            f"{shorten(classes)}"
        )
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"{where} names {len(classes)} classes; at most are {MAX_CLASSES}")
    names: dict[str, int] = {}
    for label, name in enumerate(classes):
        if not isinstance(name, str):
            raise ValueError(
                f"the name of class {label} in {where} is {shorten(name)}, a "
                f"{type(name).__name__}; put it in quotes"
            )
        name = name.strip()
        if not name:
            raise ValueError(f"the name of class {label} in {where} is empty")
        if name in names:
            raise ValueError(f"{where} names {name!r} twice: classes {names[name]} and {label}")
        names[name] = label
    if len(names) < 2:
        # Pixels without a class are left out, so one class could not be told from anything.
        raise ValueError(
            f"{where} names only {list(names)}, and must name at least 2; what is around the "
            "things of one class is a class as well, such as background"
        )
    return list(names)


def as_colors(colors: Sequence[Sequence[int]], num_classes: int) -> list[tuple[int, ...]]:
    if len(colors) != num_classes:
        raise ValueError(f"there are {len(colors)} colors for {num_classes} classes")
    for label, color in enumerate(colors):
        if not isinstance(color, (Sequence, np.ndarray)) or not (
            len(color) == 3 and all(_is_byte(part) for part in color)
        ):
            raise ValueError(
                f"the color of class {label} is {shorten(color)}, not three integers of 0 to 255"
            )
    return [tuple(map(int, color)) for color in colors]


def _is_byte(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= 255


def check_ignore_label(ignore_label: int, num_classes: int) -> None:
    if 0 <= ignore_label < num_classes:
        raise ValueError(
            f"ignore_label is {ignore_label}, which is one of the {num_classes} classes (0 to "
            f"{num_classes - 1}); classes count from 0 on, so where 0 means unlabelled in the "
            "files, subtract 1 from the labels and let 0 become 255"
        )
