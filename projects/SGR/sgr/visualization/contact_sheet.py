"""Samples of a dataset on one page: images, and what their ground truth says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..data.colors import distinct_colors
from .figure import DPI, new_figure, render
from .legend import Legend
from .overlays import check_same_size, overlay_labels
from .segments import draw_segments

__all__ = ["Sample", "draw_contact_sheet"]

# Pixels. Pictures fit into a tile, at their own aspect ratio.
_TILE = (260, 300)  # height, width
_GAP, _SAMPLE_GAP, _MARGIN = 6, 22, 16
_TITLE, _NAME = 30, 20


@dataclass
class Sample:
    """An image and its ground truth. What is None is left out.

    Attributes:
        name: shown above.
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers; outside [0, number of classes) is no class.
        components: (H, W) integers, the connected component of each pixel; outside
            [0, number of names) is none. ``component_names`` has a name for each.
        instances: (H, W) integers, the same of instances, with ``instance_names``.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray | None = None
    components: np.ndarray | None = None
    component_names: Sequence[str] = ()
    instances: np.ndarray | None = None
    instance_names: Sequence[str] = ()


def draw_contact_sheet(
    samples: Iterable[Sample],
    *,
    class_names: Sequence[str],
    class_colors: np.ndarray | None = None,
    title: str = "",
    columns: int = 2,
) -> np.ndarray:
    """Per sample the image, its labels, components and instances over it; a legend below.

    Only classes that a sample shows are in the legend, with their labels. Samples are taken one at
    a time and kept at the size of their pictures, 300 x 260 pixels at most.

    Args:
        samples: at least one.
        class_names: N names; ``class_colors`` (N, 3) uint8, RGB.
        title: at the top.
        columns: samples beside each other.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: there is no sample, or sizes of one differ.
    """
    if class_colors is None:
        class_colors = distinct_colors(len(class_names))
    shown: set[int] = set()
    rows: list[list[dict[str, np.ndarray]]] = [[]]  # each the pictures of a sample, by their titles
    for sample in samples:
        if sample.labels is not None:
            shown.update(np.unique(sample.labels).tolist())
        if len(rows[-1]) == columns:
            rows.append([])
        rows[-1].append(_pictures(sample, class_colors))
    if not rows[0]:
        raise ValueError("there is no sample to draw")

    slots = max(len(strip) for row in rows for strip in row)
    heights = [max(p.shape[0] for strip in row for p in strip.values()) for row in rows]
    tile_width = max(p.shape[1] for row in rows for strip in row for p in strip.values())
    strip_width = slots * tile_width + (slots - 1) * _GAP
    in_row = max(map(len, rows))
    width = 2 * _MARGIN + in_row * strip_width + (in_row - 1) * _SAMPLE_GAP
    legend = Legend(shown, class_names, class_colors, width / DPI, numbered=True)
    top = _MARGIN + (_TITLE if title else 0)
    height = top + sum(heights) + len(rows) * (_NAME + _SAMPLE_GAP) + round(legend.height * DPI)

    figure = new_figure(width / DPI, height / DPI)

    def write(text: str, left: int, y: int, **style) -> None:
        figure.text(left / width, 1 - y / height, text, va="center", **style)

    if title:
        write(title, _MARGIN, _MARGIN + _TITLE // 3, fontsize=11, fontweight="bold")
    for row, row_height in zip(rows, heights):
        for column, strip in enumerate(row):
            left = _MARGIN + column * (strip_width + _SAMPLE_GAP)
            for name, picture in strip.items():
                write(name, left, top + _NAME // 2, fontsize=8)
                # Pixel by pixel; its y counts from the bottom.
                below = height - top - _NAME - picture.shape[0]
                figure.figimage(picture, left, below, origin="upper")
                left += tile_width + _GAP
        top += _NAME + row_height + _SAMPLE_GAP
    legend.draw(figure)
    return render(figure)


def _pictures(sample: Sample, class_colors: np.ndarray) -> dict[str, np.ndarray]:
    """The pictures of one sample, by their titles."""
    for each in (sample.labels, sample.components, sample.instances):
        if each is not None:
            check_same_size(sample.image, each)
    height, width = sample.image.shape[:2]
    scale = min(_TILE[0] / height, _TILE[1] / width)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))  # as OpenCV has it
    image = cv2.resize(
        sample.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    letters = int(size[0] / 7.2)  # of the font size of titles
    title = sample.name if len(sample.name) <= letters else f"...{sample.name[-letters:]}"
    pictures = {title: image}
    if sample.labels is not None:
        # Of twice the size first, for thinner lines.
        double = (2 * size[0], 2 * size[1])
        large = cv2.resize(image, double, interpolation=cv2.INTER_LINEAR)
        large = overlay_labels(large, _shrink(sample.labels, double), class_colors)
        pictures["labels"] = cv2.resize(large, size, interpolation=cv2.INTER_AREA)
    for what, indices, names in (
        ("components", sample.components, sample.component_names),
        ("instances", sample.instances, sample.instance_names),
    ):
        if indices is not None:
            picture = draw_segments(image, _shrink(indices, size), names, width=size[0])
            if picture.shape != image.shape:  # by the rounding of inches
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
            pictures[f"{what}: {len(names)}"] = picture
    return pictures


def _shrink(indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(indices.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
