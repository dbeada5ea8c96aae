"""A page with samples of a dataset: images and their ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..data.colors import distinct_colors
from .figure import DPI, new_figure, plain, render
from .legend import Legend
from .overlays import check_same_size, overlay_labels
from .segments import draw_segments

# Pixels. Pictures fit into a tile, at their own aspect ratio.
_TILE = (260, 300)  # height, width
_GAP, _SAMPLE_GAP, _MARGIN = 6, 22, 16
_TITLE, _NAME = 30, 20
_COLUMNS = 2  # samples beside each other


@dataclass
class Sample:
    """An image and its ground truth. The page leaves out what is None.

    Attributes:
        name: the title of the image.
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers, the class of each pixel. Values outside of [0, number of classes)
            stand for no class.
        components: (H, W) integers, the index of each pixel's connected component in
            ``component_names``. Other values stand for no component.
        instances: (H, W) integers, the index of each pixel's instance in ``instance_names``. Other
            values stand for no instance.
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
) -> np.ndarray:
    """Draw each sample as a row of pictures: image, labels, components and instances.

    The legend below has the classes that occur in a sample, with their labels. The function takes
    one sample at a time and keeps its pictures only, which have at most 300 x 260 pixels.

    Args:
        samples: at least one.
        class_names: N names.
        class_colors: (N, 3) uint8, RGB; distinct colours by default.
        title: the title of the page.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: if there is no sample, or the maps of a sample differ in size.
    """
    if class_colors is None:
        class_colors = distinct_colors(len(class_names))
    shown: set[int] = set()
    # Rows of samples; a sample is a dict of its pictures by their titles.
    rows: list[list[dict[str, np.ndarray]]] = [[]]
    for sample in samples:
        if sample.labels is not None:
            shown.update(np.unique(sample.labels).tolist())
        if len(rows[-1]) == _COLUMNS:
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
        figure.text(left / width, 1 - y / height, plain(text), va="center", **style)

    if title:
        write(title, _MARGIN, _MARGIN + _TITLE // 3, fontsize=11, fontweight="bold")
    for row, row_height in zip(rows, heights):
        for column, strip in enumerate(row):
            left = _MARGIN + column * (strip_width + _SAMPLE_GAP)
            for name, picture in strip.items():
                write(name, left, top + _NAME // 2, fontsize=8)
                # figimage does not resample; its y counts from the bottom.
                below = height - top - _NAME - picture.shape[0]
                figure.figimage(picture, left, below, origin="upper")
                left += tile_width + _GAP
        top += _NAME + row_height + _SAMPLE_GAP
    legend.draw(figure)
    return render(figure)


def _pictures(sample: Sample, class_colors: np.ndarray) -> dict[str, np.ndarray]:
    """The pictures of one sample, by their titles."""
    for map_ in (sample.labels, sample.components, sample.instances):
        if map_ is not None:
            check_same_size(sample.image, map_)
    height, width = sample.image.shape[:2]
    scale = min(_TILE[0] / height, _TILE[1] / width)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))  # OpenCV's order
    image = cv2.resize(
        sample.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    letters = int(size[0] / 7.2)  # a letter of a title is 7.2 pixels wide
    title = sample.name if len(sample.name) <= letters else f"...{sample.name[-letters:]}"
    pictures = {title: image}
    if sample.labels is not None:
        # Drawn at twice the size and reduced, the lines become thinner.
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
            if picture.shape != image.shape:  # the size in inches is rounded
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
            pictures[f"{what}: {len(names)}"] = picture
    return pictures


def _shrink(indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(indices.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
