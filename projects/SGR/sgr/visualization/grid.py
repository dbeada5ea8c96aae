"""Pictures in rows and columns, such as those of several models for several images (Fig. 4, C)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .figure import new_figure, picture_axes, render
from .legend import Legend

_WIDTH, _GAP, _MARGIN, _TITLE = 2.2, 0.08, 0.12, 0.2


def draw_grid(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    *,
    labels: Collection[int] = (),
    class_names: Sequence[str] = (),
    class_colors: np.ndarray | None = None,
) -> np.ndarray:
    """Draw rows of titled pictures, and a legend.

    Args:
        rows: of pairs of a title, of one line, and a picture (H, W, 3) uint8, RGB. All pictures of
            a row have the same shape.
        labels: the classes in the legend; none leaves it out.
        class_names, class_colors: of the classes, N names and (N, 3) uint8.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    columns = max(len(row) for row in rows)
    width = 2 * _MARGIN + columns * _WIDTH + (columns - 1) * _GAP
    if class_colors is None:
        class_colors = np.zeros((0, 3), np.uint8)
    legend = Legend(labels, class_names, class_colors, width)
    heights = [_WIDTH * row[0][1].shape[0] / row[0][1].shape[1] for row in rows]
    titles = [_TITLE if any(title for title, _ in row) else 0 for row in rows]
    total = sum(heights) + sum(titles) + len(rows) * _GAP
    figure = new_figure(width, 2 * _MARGIN + total + legend.height)
    top = _MARGIN
    for row, height, title_height in zip(rows, heights, titles):
        top += title_height
        for column, (title, picture) in enumerate(row):
            picture_axes(figure, picture, _MARGIN + column * (_WIDTH + _GAP), top, _WIDTH, title)
        top += height + _GAP
    legend.draw(figure)
    return render(figure)
