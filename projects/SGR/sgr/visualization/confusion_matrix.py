"""A picture of a confusion matrix: which class a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from .figure import add_axes, new_figure, plain, render

# Inches. With few classes, the cells have room for numbers. With more classes the cells shrink, and
# where no name fits beside its row, the axes show the numbers of the classes.
_CELL, _CELL_WITHOUT_NUMBERS, _SMALLEST_NAMED_CELL = 0.42, 0.105, 0.07
_LARGEST_SIDE, _SMALLEST_SIDE = 26.0, 2.2
_MAX_NUMBERED = 30
_MAX_NAME = 24


def draw_confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw the share of each true class (rows) that is predicted as each class (columns).

    Shares are in percent, so the diagonal holds the accuracies of the classes. The colour grows
    with the square root of the share, so that small confusions are visible. With up to 30 classes,
    the cells show their shares from 0.5 % on. The row of a class that the ground truth lacks is
    grey.

    Drawing the names takes most of the time: a few seconds with 171 classes, where the picture is
    2300 pixels wide.

    Args:
        counts: (C, C) pixels, with the true class in rows and the predicted class in columns.
        class_names: C names of any type. Long names are shortened, and characters that cannot be
            printed are left out.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: if the matrix is not (C, C) for C names.
    """
    return render(confusion_figure(counts, class_names))


def confusion_figure(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Make the figure of :func:`draw_confusion_matrix`; its first axes hold the matrix."""
    counts = np.asarray(counts)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(
            f"a confusion matrix of {num_classes} classes is {num_classes} x {num_classes}, got "
            f"counts of the shape {counts.shape}"
        )
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
    names = [_as_label(name) for name in class_names]

    numbered = num_classes <= _MAX_NUMBERED
    cell = _CELL if numbered else _CELL_WITHOUT_NUMBERS
    side = min(max(num_classes * cell, _SMALLEST_SIDE), _LARGEST_SIDE)
    named = side / num_classes >= _SMALLEST_NAMED_CELL
    font_size = 8.0 if numbered else 5.5
    room = _width(names, font_size) + 0.15 if named else 0.4
    left, top = room + 0.3, 0.45 + (0 if numbered else room)
    right = 0.9 + (0 if numbered else room)
    figure = new_figure(left + side + right, top + side + room + 0.3)
    axes = add_axes(figure, left, top, side, side)
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    axes.set_facecolor("0.8")
    image = axes.imshow(
        np.ma.masked_invalid(percent), cmap="Blues", norm=norm, interpolation="nearest"
    )
    if named:
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font_size)
        axes.set_yticks(range(num_classes), names, fontsize=font_size)
    if numbered:
        _show_numbers(axes, percent)
    else:  # names on all sides, and lines that lead to them
        axes.tick_params(labeltop=named, labelright=named, top=True, right=True)
        every = np.arange(10, num_classes, 10) - 0.5
        axes.hlines(every, -0.5, num_classes - 0.5, color="0.75", linewidth=0.4)
        axes.vlines(every, -0.5, num_classes - 0.5, color="0.75", linewidth=0.4)
    axes.tick_params(length=2, width=0.5, pad=2)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.set_title("share of the true class, %", fontsize=9, pad=6)

    bar = add_axes(figure, left + side + right - 0.65, top, 0.16, min(side, 4.0))
    figure.colorbar(image, cax=bar, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.tick_params(labelsize=7, length=2)
    return figure


def _as_label(name: object) -> str:
    """The name in one line, such that Matplotlib never reads it as a formula."""
    text = "".join(letter for letter in " ".join(str(name).split()) if letter.isprintable())
    if len(text) > _MAX_NAME:
        text = f"{text[: _MAX_NAME - 1]}…"
    return plain(text)


def _width(names: Sequence[str], font_size: float) -> float:
    """The width of the widest name, in inches."""
    # With a dot, because Matplotlib raises for a path without anything visible.
    paths = (TextPath((0, 0), f"{name}.", size=font_size) for name in names)
    return max(path.get_extents().xmax for path in paths) / 72


def _show_numbers(axes, percent: np.ndarray) -> None:
    for row, column in np.argwhere(np.nan_to_num(percent) >= 0.5):
        value = percent[row, column]
        color = "white" if value > 30 else "0.15"
        text = str(int(value + 0.5))  # halves up, as the smallest that is shown
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
