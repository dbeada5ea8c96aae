"""Curves of trainings, drawn from Detectron2's metrics.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from .figure import add_axes, new_figure, plain, render
from .metric_names import metric_title

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 3.6, 2.4, 0.65, 0.35, 0.5
_COLUMNS = 3  # plots in a row


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the metrics of a training.

    Args:
        path: a ``metrics.json`` (one JSON object in each line), or the folder that holds it.

    Returns:
        Metric -> (iterations, values), sorted by iteration. Where a resumed training wrote an
        iteration twice, the later value counts. What is no line of a training, such as half of one
        that a killed process left, is left out with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a trainer writes it to its OUTPUT_DIR")
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        entry = metrics_entry(line)
        if entry is None:
            if line.strip():
                logging.getLogger(__name__).warning("%s, line %d is damaged", path, number)
            continue
        for name, value in entry.items():
            if name != "iteration" and isinstance(value, (int, float)):
                series.setdefault(name, {})[entry["iteration"]] = value
    return {
        name: (np.array(sorted(points)), np.array([points[key] for key in sorted(points)]))
        for name, points in series.items()
    }


def metrics_entry(line: str | bytes) -> dict[str, Any] | None:
    """The metrics in a line of metrics.json; None if it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "iteration" in entry else None


def draw_training_curves(
    runs: Mapping[str, str | Path],
    metrics: Sequence[str] = ("total_loss", "sem_seg/mIoU", "tokens/S_C"),
) -> np.ndarray:
    """Draw one plot for each metric, with one line for each training, over the iterations.

    A curve of many points is pale and has its running median on top.

    Args:
        runs: name of a training -> its metrics.json, or the folder that holds it.
        metrics: names in metrics.json.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        FileNotFoundError: if a training has no metrics.json.
        ValueError: if no training has one of the metrics.
    """
    series = {name: read_metrics(path) for name, path in runs.items()}
    known = sorted({metric for values in series.values() for metric in values})
    for metric in metrics:
        if metric not in known:
            raise ValueError(f"no training has the metric {metric!r}; they have {known}")

    legend_height = 0.3 if len(runs) > 1 else 0.05
    row_height = _TOP + _HEIGHT + _BOTTOM
    figure = new_figure(
        min(_COLUMNS, len(metrics)) * (_LEFT + _WIDTH) + 0.2,
        -(-len(metrics) // _COLUMNS) * row_height + legend_height,
    )
    handles = {}
    for place, metric in enumerate(metrics):
        row, column = divmod(place, _COLUMNS)
        left = _LEFT + column * (_WIDTH + _LEFT)
        axes = add_axes(figure, left, row * row_height + _TOP, _WIDTH, _HEIGHT)
        for index, (run, values) in enumerate(series.items()):
            if metric in values:
                handles[run] = _show_curve(axes, *values[metric], f"C{index}")
        axes.set_title(metric_title(metric), fontsize=9)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
    if len(runs) > 1:
        figure.legend(
            handles=list(handles.values()),
            labels=list(map(plain, handles)),
            loc="lower center",
            ncols=len(handles),
            fontsize=8.5,
            frameon=False,
            borderaxespad=0.1,
        )
    return render(figure)


def _show_curve(axes, iterations: np.ndarray, values: np.ndarray, color: str):
    if len(values) < 40:
        return axes.plot(iterations, values, color=color, marker="o", markersize=3)[0]
    axes.plot(iterations, values, color=color, alpha=0.3, linewidth=0.8)
    window = 2 * (len(values) // 50) + 3
    median = median_filter(values, size=window, mode="nearest")
    return axes.plot(iterations, median, color=color, linewidth=1.6)[0]
