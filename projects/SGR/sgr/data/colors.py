"""Colours that are easy to tell apart."""

from __future__ import annotations

from functools import cache

import numpy as np

# The colour of pixels without a label.
UNLABELLED = np.array([48, 48, 48], dtype=np.uint8)

# Each further round of the palette is darker by this factor.
_DARKER = 0.8


def distinct_colors(count: int) -> np.ndarray:
    """The first ``count`` of a fixed list of colours; none is dark, and the first ones differ most.

    They are a palette of colorcet, made by the method of Glasbey et al. (2007): each colour is as
    far as possible from those before it, from black and from white. After 256 colours, the palette
    comes again, darker.

    Returns:
        (count, 3) uint8, RGB.
    """
    palette = _palette()
    index = np.arange(count)
    scale = _DARKER ** (index // len(palette))
    return (palette[index % len(palette)] * scale[:, None]).round().astype(np.uint8)


def class_colors(metadata, count: int, key: str = "stuff_colors") -> np.ndarray:
    """The colours of a dataset's classes, or distinct ones if it has none or too few.

    Args:
        metadata: Detectron2 metadata, or a dict.
        key: the key of the colours in the metadata, "stuff_colors" or "thing_colors".

    Returns:
        (count, 3) uint8, RGB.
    """
    colors = metadata.get(key)
    if colors is None or len(colors) < count:
        return distinct_colors(count)
    return np.asarray(colors[:count], dtype=np.uint8)


@cache
def _palette() -> np.ndarray:
    from colorcet import b_glasbey_bw_minc_20_minl_30  # here: it takes a tenth of a second

    rows = [
        [int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in b_glasbey_bw_minc_20_minl_30
    ]
    return np.array(rows, dtype=np.float64)
