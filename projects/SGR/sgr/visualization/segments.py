"""Pictures of connected components and instances, with colours and names (Fig. A)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from scipy.ndimage import find_objects

from ..data.colors import distinct_colors
from .figure import DPI, new_figure, picture_axes, plain, render
from .overlays import overlay_labels

_ATTEMPTS = 4
_FONT_SIZES = (8, 6.5)


def number_names(names: Sequence[str]) -> list[str]:
    """["car", "road", "car"] -> ["car 1", "road", "car 2"]."""
    totals, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} {seen[name]}" if totals[name] > 1 else name)
    return numbered


def draw_segments(
    image: np.ndarray, indices: np.ndarray, names: Sequence[str], *, width: int = 720
) -> np.ndarray:
    """Draw the segments of an image over it, and their names where there is room.

    Args:
        image: (H, W, 3) uint8, RGB.
        indices: (H, W) integers, the segment of each pixel. Values outside of [0, N) stand for
            no segment.
        names: N names, for example from :func:`number_names`.
        width: the width of the picture, in pixels.

    Returns:
        (about width * H / W, width, 3) uint8, RGB.
    """
    inches = width / DPI
    figure = new_figure(inches, inches * image.shape[0] / image.shape[1])
    picture = overlay_labels(image, indices, distinct_colors(len(names)))
    show_segments(picture_axes(figure, picture, 0, 0, inches), indices, names)
    return render(figure)


def show_segments(axes: Axes, indices: np.ndarray, names: Sequence[str]) -> None:
    """Write the name of each segment at the point that is farthest from its border.

    The names of larger segments are placed first. A name that would overlap with another one moves
    to the next best point, then shrinks. It is left out if neither helps.

    Args:
        axes: axes that show a picture of the size of ``indices``, at their final place.
        indices, names: see :func:`draw_segments`.
    """
    # From 1; 0 is no segment.
    numbers = np.where((indices >= 0) & (indices < len(names)), indices, -1).astype(np.int32) + 1
    areas = np.bincount(numbers.ravel(), minlength=len(names) + 1)[1:]
    places = find_objects(numbers, len(names))
    taken: list = []
    for index in np.argsort(-areas, kind="stable"):
        if areas[index] == 0:
            break
        # Only where it is, because there may be many: outside of it, the depth is zero. The frame
        # of zeros makes the edge of the picture an edge of the segment.
        mask = np.pad((numbers[places[index]] == index + 1).view(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        corner = places[index][0].start, places[index][1].start
        for size in _FONT_SIZES:
            box = _place(axes, depth.copy(), corner, names[index], size, taken)
            if box is not None:
                taken.append(box)
                break


def _place(
    axes: Axes,
    depth: np.ndarray,
    corner: tuple[int, int],
    name: str,
    font_size: float,
    taken: list,
):
    """Write ``name`` where ``depth`` is largest, off the boxes ``taken``.

    Args:
        depth: (h, w), the distance to the border of the segment; it is changed.
        corner: row and column of the picture where ``depth`` begins.

    Returns:
        The box of the name, or None if there is no room.
    """
    top, left = corner
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    text = axes.text(
        0,
        0,
        plain(name),
        fontsize=font_size,
        color="white",
        ha="center",
        va="center",
        path_effects=[patheffects.withStroke(linewidth=1.8, foreground="black")],
    )
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    for _ in range(_ATTEMPTS):
        deepest = np.unravel_index(depth.argmax(), depth.shape)
        if depth[deepest] == 0:
            break
        row, column = deepest[0] + top, deepest[1] + left
        text.set_position((column, row))
        box = text.get_window_extent(renderer).padded(2)
        # Move it back into the picture where it sticks out.
        shift_x = max(frame.x0 - box.x0, 0) + min(frame.x1 - box.x1, 0)
        shift_y = max(frame.y0 - box.y0, 0) + min(frame.y1 - box.y1, 0)
        if shift_x or shift_y:
            x, y = to_pixels.transform((column, row))
            text.set_position(to_data.transform((x + shift_x, y + shift_y)))
            box = text.get_window_extent(renderer).padded(2)
        if not any(box.overlaps(other) for other in taken):
            return box
        (x0, y0), (x1, y1) = to_data.transform([(box.x0, box.y1), (box.x1, box.y0)])
        rows = slice(max(int(y0) - top, 0), max(int(y1) + 1 - top, 0))
        columns = slice(max(int(x0) - left, 0), max(int(x1) + 1 - left, 0))
        depth[rows, columns] = 0
        depth[deepest] = 0
    text.remove()
    return None
