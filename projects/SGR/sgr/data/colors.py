"""Colours that are easy to tell apart."""

from __future__ import annotations

import numpy as np

# The colour of pixels without a label.
UNLABELLED = np.array([48, 48, 48], dtype=np.uint8)

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
# (lightness, chroma) in OKLab, used in turn. With three of them, a tone gets nearly the same hue
# again only after 21 colours. From there on, the lightness is shifted.
_TONES = np.array([[0.70, 0.15], [0.84, 0.10], [0.54, 0.14]])
_SHIFTS = np.array([0.0, -0.08, 0.05])


def distinct_colors(count: int) -> np.ndarray:
    """The first ``count`` of a fixed list of colours; none is black, and the first 20 differ most.

    The hue advances by the golden angle in the OKLab space, where equal steps look equal.

    Returns:
        (count, 3) uint8, RGB.
    """
    index = np.arange(count)
    lightness, chroma = _TONES[index % len(_TONES)].T
    lightness = lightness + _SHIFTS[index // 21 % len(_SHIFTS)]
    hue = 0.5 + index * _GOLDEN_ANGLE
    return _oklab_to_rgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))


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


def _oklab_to_rgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab (B. Ottosson, 2020) to 8-bit sRGB, clipped to its gamut."""
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (lms**3 @ to_linear_rgb.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)
