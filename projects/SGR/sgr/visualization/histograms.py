"""Pictures of single tokens: their regions beside their histograms (Fig. B)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..data.colors import distinct_colors
from .figure import add_axes, new_figure, picture_axes, plain, render
from .overlays import overlay_heat, overlay_labels
from .segments import show_segments

_PICTURE_WIDTH, _BARS_WIDTH = 3.0, 2.9
_LEFT, _TITLE = 0.15, 0.45
# Room for the numbers of the axis beside the bars, and for the slanted names below them.
_AXIS_NUMBERS, _TICK_NAMES = 0.4, 0.75
_MAX_BARS = 10


def draw_token_histograms(
    image: np.ndarray,
    regions: np.ndarray,
    token_names: Sequence[str],
    *,
    class_histograms: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    class_colors: np.ndarray | None = None,
    instance_map: np.ndarray | None = None,
    instance_histograms: np.ndarray | None = None,
    instance_names: Sequence[str] = (),
    instance_shares: np.ndarray | None = None,
    instance_title: str = "instances",
) -> np.ndarray:
    """Draw one row for each token: its region and its histograms over instances and classes.

    P(w) is the share of the region's labelled weight that lies on a class or an instance. The title
    gives the entropy of the histogram, in nats; the token metrics are means of it. If there are
    instances, the first column shows them, and the title says how much of the weight is on any of
    them. A kind of histogram without names is left out. Of more than ten bins, the heaviest over
    all T tokens are shown, and the others are summed up as "other".

    Args:
        image: (H, W, 3) uint8, RGB.
        regions: (T, H, W) in [0, 1], at the size of the image.
        token_names: T titles.
        class_histograms: (T, N). A row sums to 1, or to 0 for a token without a labelled pixel.
        class_names: N names.
        class_colors: (N, 3) uint8, the colours of the bars; distinct colours by default.
        instance_map: (H, W) integers in [0, M); other values stand for no instance.
        instance_histograms: (T, M), as ``class_histograms``.
        instance_names: M names.
        instance_shares: (T,) in [0, 1], the share of each region's weight that lies on instances.
        instance_title: what these are, such as "components" where a dataset has no instances.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    if not len(instance_names):
        instance_map = instance_histograms = None
    kinds = []
    instance_colors = distinct_colors(len(instance_names))
    if instance_histograms is not None:
        kinds.append((instance_title, instance_histograms, instance_names, instance_colors))
    if class_histograms is not None and len(class_names):
        if class_colors is None:
            class_colors = distinct_colors(len(class_names))
        kinds.append(("classes", class_histograms, class_names, class_colors))

    picture_height = _PICTURE_WIDTH * image.shape[0] / image.shape[1]
    bars_height = max(picture_height - _TICK_NAMES, 1.2)
    row_height = max(picture_height, bars_height + _TICK_NAMES) + _TITLE
    pictures = 1 + (instance_map is not None)
    first_bars = _LEFT + pictures * (_PICTURE_WIDTH + _LEFT) + _AXIS_NUMBERS
    width = first_bars + len(kinds) * (_BARS_WIDTH + _AXIS_NUMBERS + _LEFT) - _AXIS_NUMBERS
    figure = new_figure(width, len(regions) * row_height + _LEFT)

    if instance_map is not None:
        picture = overlay_labels(image, instance_map, instance_colors)
        axes = picture_axes(figure, picture, _LEFT, _TITLE, _PICTURE_WIDTH, instance_title)
        show_segments(axes, instance_map, instance_names)
    for row, (region, name) in enumerate(zip(regions, token_names)):
        top = _TITLE + row * row_height
        left = _LEFT + (pictures - 1) * (_PICTURE_WIDTH + _LEFT)
        picture_axes(figure, overlay_heat(image, region), left, top, _PICTURE_WIDTH, name)
        left = first_bars
        for kind, histograms, names, colors in kinds:
            axes = add_axes(figure, left, top, _BARS_WIDTH, bars_height)
            bars = _heaviest(histograms, names, colors, row)
            share = ""
            if kind == instance_title and instance_shares is not None:
                share = f" ({100 * instance_shares[row]:.0f} % of the weight)"
            _show_bars(axes, *bars, f"{kind}{share}, {_entropy_text(histograms[row])}")
            left += _BARS_WIDTH + _AXIS_NUMBERS + _LEFT
    return render(figure)


def _heaviest(
    histograms: np.ndarray, names: Sequence[str], colors: np.ndarray, row: int
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Values, names and colours of the bars of one row, in the order of the bins."""
    if len(names) <= _MAX_BARS:
        return histograms[row], list(names), np.asarray(colors)
    kept = np.sort(np.argsort(-histograms.sum(axis=0), kind="stable")[: _MAX_BARS - 1])
    values = histograms[row, kept]
    rest = histograms[row].sum() - values.sum()
    return (
        np.append(values, max(rest, 0)),
        [*(names[index] for index in kept), "other"],
        np.concatenate([np.asarray(colors)[kept], [[150, 150, 150]]]),
    )


def _entropy_text(histogram: np.ndarray) -> str:
    positive = histogram[histogram > 0].astype(np.float64)
    if positive.size == 0:
        return "no labelled pixel"
    return f"entropy {max(-(positive * np.log(positive)).sum(), 0):.2f}"


def _show_bars(
    axes: Axes, values: np.ndarray, names: list[str], colors: np.ndarray, title: str
) -> None:
    places, names = np.arange(len(values)), list(map(plain, names))
    axes.bar(places, values, width=0.75, color=colors / 255, edgecolor="0.3", linewidth=0.5)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, max(len(values), 4) - 0.4)
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(axis="both", length=2, labelsize=7)
    axes.set_ylabel("P(w)", fontsize=8, labelpad=1)
    axes.set_title(plain(title), fontsize=8.5, pad=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
