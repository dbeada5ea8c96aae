"""Pictures of label maps and heat maps, at the size of the image."""

from __future__ import annotations

import cv2
import matplotlib
import numpy as np

from ..data.colors import UNLABELLED

# Without the darkest third of the map, which would be black on a dark image.
HEAT = matplotlib.colormaps["inferno"](np.linspace(0.35, 1, 256))[:, :3] * 255
_ERROR = np.array([230, 60, 40])
# The grey levels of the image below the heat, and the least spread of levels that fills them: the
# noise of an image of one colour is not raised.
_GREY, _LEAST_SPREAD = (60, 150), 48


def color_labels(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint a label map.

    Args:
        labels: (H, W) integers. Values outside of [0, N), such as -1 or an ignore label, become
            dark grey.
        colors: (N, 3) uint8, RGB.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    table = np.concatenate([np.asarray(colors, dtype=np.uint8).reshape(-1, 3), UNLABELLED[None]])
    inside = (labels >= 0) & (labels < len(colors))
    return table[np.where(inside, labels, len(colors))]


def overlay_labels(image: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Draw a label map over an image, with a light line between different labels.

    Where a pixel has no label, the image is darkened.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers. Values outside of [0, N) stand for no label.
        colors: (N, 3) uint8, RGB.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    check_same_size(image, labels)
    picture = _blend(image, color_labels(labels, colors), 0.6)
    # A pixel is on the border if its right or lower neighbour has another label.
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    picture[borders] = 245
    return picture


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw one soft region over the image, which becomes grey, of medium levels (as in Fig. 4).

    The scale is the same for every region: 0 shows the grey image, 1 is the brightest yellow. Dark
    images become lighter, so that one sees the region and what lies under it.

    Args:
        image: (H, W, 3) uint8, RGB.
        heat: (H, W) in [0, 1].

    Returns:
        (H, W, 3) uint8, RGB.
    """
    check_same_size(image, heat)
    heat = heat.astype(np.float32).clip(0, 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low, high = np.percentile(grey, (1, 99))
    share = ((grey - low) / max(high - low, _LEAST_SPREAD)).clip(0, 1)
    grey = _GREY[0] + (_GREY[1] - _GREY[0]) * share
    return _blend(
        grey[..., None].repeat(3, axis=-1),
        HEAT[np.round(255 * heat).astype(np.int32)],
        0.8 * np.sqrt(heat)[..., None],
    )


def overlay_errors(image: np.ndarray, wrong: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Draw wrong pixels in red over a pale image, whose pixels without a label are dark grey.

    Args:
        image: (H, W, 3) uint8, RGB.
        wrong, labelled: (H, W) bool.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    check_same_size(image, wrong)
    check_same_size(image, labelled)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    picture = _blend(grey.repeat(3, axis=-1), np.array(255), 0.5)
    picture[~labelled] = UNLABELLED
    picture[wrong] = _blend(picture[wrong], _ERROR, 0.75)
    return picture


def check_same_size(image: np.ndarray, other: np.ndarray) -> None:
    """Raise a ValueError if ``image`` is not (H, W, 3) uint8 or ``other`` is not (H, W)."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    if other.shape != image.shape[:2]:
        raise ValueError(
            f"a map of shape {other.shape} cannot be laid over an image of {image.shape[:2]}"
        )


def _blend(below: np.ndarray, above: np.ndarray, opacity: float | np.ndarray) -> np.ndarray:
    return np.round(below * (1 - opacity) + above * opacity).astype(np.uint8)
