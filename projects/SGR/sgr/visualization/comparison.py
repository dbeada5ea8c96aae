"""A picture that compares the metrics of models over several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .figure import add_axes, new_figure, plain, render
from .metric_names import metric_title

_PANEL_WIDTH, _ROW_HEIGHT, _GAP = 2.1, 0.3, 0.2
_TOP, _BOTTOM = 0.35, 0.35
_NAME_SIZE = 8.5


def draw_comparison(
    results: Mapping[str, Mapping[str, Sequence[float]]], metrics: Sequence[str]
) -> np.ndarray:
    """Draw one panel for each metric, with one row for each model.

    A row has a dot for each training and a line at their mean. A band shows the standard deviation
    (with N - 1) on both sides of the mean; a model with a single training has no band. A model
    without a value keeps its row, which is empty.

    Args:
        results: name of a model -> metric -> values of its trainings. The models are drawn from top
            to bottom.
        metrics: names in metrics.json. They are drawn from left to right.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: if there is no metric, or no model has a value of one of them.
    """
    if not metrics:
        raise ValueError("there is no metric to draw")
    for metric in metrics:
        if not any(values.get(metric) for values in results.values()):
            raise ValueError(f"no model has a value of the metric {metric!r}")

    first = _GAP + _text_width(list(results)) + 0.12
    width = first + len(metrics) * (_PANEL_WIDTH + _GAP)
    height = len(results) * _ROW_HEIGHT
    figure = new_figure(width, _TOP + height + _BOTTOM)
    for column, metric in enumerate(metrics):
        left = first + column * (_PANEL_WIDTH + _GAP)
        axes = add_axes(figure, left, _TOP, _PANEL_WIDTH, height)
        for row, values in enumerate(results.values()):
            _show_trainings(axes, row, values.get(metric, ()))
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_yticks(range(len(results)), list(map(plain, results)) if column == 0 else [])
        _style(axes, metric_title(metric))
    return render(figure)


def _text_width(names: Sequence[str]) -> float:
    """Width of the longest name, in inches."""
    figure = new_figure(1, 1)
    renderer = figure.canvas.get_renderer()
    boxes = (figure.text(0, 0, plain(name), fontsize=_NAME_SIZE) for name in names)
    return max(box.get_window_extent(renderer).width for box in boxes) / figure.dpi


def _show_trainings(axes: Axes, row: int, values: Sequence[float]) -> None:
    if not values:
        return
    center = mean(values)
    if len(values) > 1:
        spread = stdev(values)
        ends = (center - spread, center + spread)
        axes.plot(ends, (row, row), color="C0", alpha=0.25, linewidth=9, solid_capstyle="butt")
    axes.plot(center, row, "|", color="0.15", markersize=13, markeredgewidth=2)
    axes.plot(values, [row] * len(values), "o", color="C0", markersize=4.5, markeredgecolor="white")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="x", labelsize=7.5)
    axes.tick_params(axis="y", labelsize=_NAME_SIZE, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
