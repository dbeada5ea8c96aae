"""One page about one image: ground truth, prediction and concept regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.colors import distinct_colors
from .figure import new_figure, picture_axes, render
from .legend import Legend
from .overlays import (
    check_same_size,
    color_labels,
    overlay_errors,
    overlay_heat,
    overlay_labels,
)
from .segments import number_names, show_segments

_TILE_WIDTH, _GAP, _MARGIN = 3.0, 0.12, 0.12
_COLUMNS = 4  # pictures in a row


def draw_panel(
    image: np.ndarray,
    *,
    class_names: Sequence[str],
    class_colors: np.ndarray | None = None,
    ground_truth: np.ndarray | None = None,
    components: tuple[np.ndarray, np.ndarray] | None = None,
    prediction: np.ndarray | None = None,
    errors: bool = False,
    regions: np.ndarray | None = None,
    region_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw image, ground truth, components, prediction, errors, concept regions and a legend.

    The page leaves out what is None.

    Args:
        image: (H, W, 3) uint8, RGB.
        class_names: N names.
        class_colors: (N, 3) uint8, RGB; distinct colours by default.
        ground_truth, prediction: (H, W) integers. Values outside of [0, N) are unlabelled.
        components: an ``sgr.data.components.ComponentMap``: the (H, W) index of each pixel's
            component, -1 for none, and the (C,) classes of the components.
        errors: draw where the prediction differs from the ground truth, if there are both.
        regions: (T, H, W) in [0, 1], at the size of the image.
        region_names: T titles, of one or two lines.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: if maps differ in size, or regions and names differ in number.
    """
    if class_colors is None:
        class_colors = distinct_colors(len(class_names))
    if regions is None:
        regions = np.empty((0, *image.shape[:2]))
    if len(regions) != len(region_names):
        raise ValueError(f"{len(regions)} regions have {len(region_names)} names")
    maps = [labels for labels in (ground_truth, prediction) if labels is not None]
    for labels in maps:
        check_same_size(image, labels)

    tiles = [("image", image)]
    if ground_truth is not None:
        tiles.append(("ground truth", color_labels(ground_truth, class_colors)))
    if components is not None:
        indices, classes = components
        picture = overlay_labels(image, indices, distinct_colors(len(classes)))
        tiles.append((f"connected components: {len(classes)}", picture))
        components_at = divmod(len(tiles) - 1, _COLUMNS)
    if prediction is not None:
        tiles.append(("prediction", color_labels(prediction, class_colors)))
    if errors and ground_truth is not None and prediction is not None:
        labelled = (ground_truth >= 0) & (ground_truth < len(class_names))
        wrong = labelled & (prediction != ground_truth)
        share = 100 * wrong.sum() / max(labelled.sum(), 1)
        picture = overlay_errors(image, wrong, labelled)
        tiles.append((f"errors: {share:.1f} % of the labelled pixels", picture))
    # The regions begin a row of their own.
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    heat = [(name, overlay_heat(image, region)) for name, region in zip(region_names, regions)]
    rows += [heat[start : start + _COLUMNS] for start in range(0, len(heat), _COLUMNS)]

    widest = max(len(row) for row in rows)
    width = 2 * _MARGIN + widest * _TILE_WIDTH + (widest - 1) * _GAP
    tile_height = _TILE_WIDTH * image.shape[0] / image.shape[1]
    titles = [0.06 + 0.15 * max(title.count("\n") + 1 for title, _ in row) for row in rows]
    shown = set().union(*(np.unique(labels).tolist() for labels in maps))
    legend = Legend(shown, class_names, class_colors, width)
    height = 2 * _MARGIN + sum(titles) + len(rows) * (tile_height + _GAP) + legend.height
    figure = new_figure(width, height)

    top = _MARGIN
    for row, title_height in enumerate(titles):
        top += title_height
        for column, (title, picture) in enumerate(rows[row]):
            left = _MARGIN + column * (_TILE_WIDTH + _GAP)
            axes = picture_axes(figure, picture, left, top, _TILE_WIDTH, title)
            if components is not None and (row, column) == components_at:
                show_segments(axes, indices, number_names([class_names[c] for c in classes]))
        top += tile_height + _GAP
    legend.draw(figure)
    return render(figure)
