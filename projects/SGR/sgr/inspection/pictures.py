"""Pictures of an inspected image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..visualization import draw_panel, draw_token_histograms, number_names, upsample_regions
from .image import InspectedImage


def draw_inspected(
    inspected: InspectedImage,
    class_names: Sequence[str],
    class_colors: np.ndarray,
    *,
    num_regions: int = 8,
    errors: bool = False,
) -> np.ndarray:
    """Draw an image, its ground truth, its prediction and the regions of the most used tokens.

    Args:
        inspected: see :class:`~sgr.inspection.image.Inspector`.
        class_names: N names of the dataset.
        class_colors: (N, 3) uint8, RGB.
        num_regions: number of regions, if the model has any.
        errors: draw where the prediction is wrong, in the place of the components.

    Returns:
        (height, width, 3) uint8, RGB; see :func:`sgr.visualization.draw_panel`.
    """
    regions, names = None, []
    if inspected.tokens is not None:
        shown = inspected.tokens.most_used(num_regions)
        regions, names = _regions(inspected, shown), _titles(inspected, class_names, shown)
    return draw_panel(
        inspected.image,
        class_names=class_names,
        class_colors=class_colors,
        ground_truth=_ground_truth(inspected, class_names),
        components=None if errors else inspected.components,
        prediction=inspected.prediction,
        errors=errors,
        regions=regions,
        region_names=names,
    )


def draw_inspected_tokens(
    inspected: InspectedImage,
    class_names: Sequence[str],
    class_colors: np.ndarray,
    *,
    num_tokens: int = 3,
) -> np.ndarray | None:
    """Draw the regions of the most used tokens with their histograms of classes and instances.

    For arguments, see :func:`draw_inspected`.

    Returns:
        (height, width, 3) uint8, RGB; see :func:`sgr.visualization.draw_token_histograms`. None
        where the image has no ground truth, or the model no tokens.
    """
    tokens = inspected.tokens
    if tokens is None:
        return None
    shown = tokens.most_used(num_tokens)
    histograms = {}
    if tokens.classes is not None and len(tokens.classes.labels):
        present = tokens.classes.labels
        histograms["class_histograms"] = tokens.classes.values[shown]
        histograms["class_names"] = [class_names[label] for label in present]
        histograms["class_colors"] = class_colors[present]
    if tokens.instances is not None and len(tokens.instances.labels):
        histograms["instance_map"] = tokens.instances.bins
        histograms["instance_histograms"] = tokens.instances.values[shown]
        histograms["instance_shares"] = tokens.instances.share[shown]
        histograms["instance_names"] = number_names(inspected.instance_names or [])
    if not histograms:
        return None
    regions, titles = _regions(inspected, shown), _titles(inspected, class_names, shown)
    return draw_token_histograms(inspected.image, regions, titles, **histograms)


def _ground_truth(inspected: InspectedImage, class_names: Sequence[str]) -> np.ndarray | None:
    """(H, W) classes: the labels, or of data with instances only the classes of these."""
    tokens = inspected.tokens
    if inspected.labels is not None or tokens is None or tokens.instances is None:
        return inspected.labels
    classes = [list(class_names).index(name) for name in inspected.instance_names or []]
    return np.array([*classes, -1])[tokens.instances.bins]


def _regions(inspected: InspectedImage, shown: np.ndarray) -> np.ndarray:
    """(T, H, W) float32, the regions of some tokens at the size of the image."""
    tokens = inspected.tokens
    assert tokens is not None
    return upsample_regions(
        tokens.probabilities[shown], tokens.stride, inspected.input_size, inspected.image.shape[:2]
    )


def _titles(inspected: InspectedImage, class_names: Sequence[str], shown: np.ndarray) -> list[str]:
    tokens = inspected.tokens
    assert tokens is not None
    titles = [f"concept {token}, peak {tokens.peak[token]:.2f}" for token in shown]
    if tokens.classes is not None and len(tokens.classes.labels):
        present = tokens.classes.labels
        titles = [
            f"{title}\n{class_names[present[row.argmax()]]} {100 * row.max():.0f} %"
            for title, row in zip(titles, tokens.classes.values[shown])
        ]
    return titles
