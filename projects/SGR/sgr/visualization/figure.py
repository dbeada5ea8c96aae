"""Matplotlib figures without a display, laid out in inches, returned as arrays.

Nothing here touches pyplot, so a user's backend and open figures stay as they are.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["add_axes", "new_figure", "picture_axes", "render"]

DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that can be drawn and measured at once."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, measured from the figure's upper left corner."""
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
    """Show an (H, W, 3) picture, ``width`` inches wide at its own aspect ratio, title above."""
    axes = add_axes(figure, left, top, width, width * picture.shape[0] / picture.shape[1])
    axes.imshow(picture, aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8.5, pad=4)
    return axes


def render(figure: Figure) -> np.ndarray:
    """The figure as an (H, W, 3) uint8 picture, RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
