"""Matplotlib figures that need no display, are laid out in inches, and become arrays.

This module does not use pyplot, so the user's backend and open figures stay as they are.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, ``width`` x ``height`` inches, in which text can be measured."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches, counted from the upper left corner of the figure."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / total_width,
            1 - (top + height) / total_height,
            width / total_width,
            height / total_height,
        )
    )


def picture_axes(
    figure: Figure,
    picture: np.ndarray,
    left: float,
    top: float,
    width: float,
    title: str = "",
) -> Axes:
    """Show an (H, W, 3) picture with a title; it is ``width`` inches wide and not distorted."""
    axes = add_axes(figure, left, top, width, width * picture.shape[0] / picture.shape[1])
    axes.imshow(picture, aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8.5, pad=4)
    return axes


def render(figure: Figure) -> np.ndarray:
    """Draw the figure and return it as an (H, W, 3) uint8 picture, RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
