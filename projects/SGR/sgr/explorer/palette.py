"""Colours of classes that people with a colour vision deficiency can tell apart, too."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..data.colors import UNLABELLED

# How linear RGB looks without one of the three kinds of cones: Machado, Oliveira and Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), severity 1.
DEFICIENCIES = np.array(
    [
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
# Linear RGB -> cone responses -> OKLab (Ottosson, "A perceptual color space for image processing",
# 2020), in which equal distances look about equal.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def safe_colors(count: int) -> np.ndarray:
    """The first ``count`` colours of a list in which each is as far as possible from those before.

    Far means far for normal sight and for each of three deficiencies. The later a colour, the
    nearer is one before it: 0.11 for 8 colours, 0.07 for 19 (1 is from black to white).

    Returns:
        (count, 3) uint8, RGB. After 200 colours the list comes again.
    """
    return _palette()[np.arange(count) % len(_palette())]


def appearances(colors: np.ndarray) -> np.ndarray:
    """(4, N, 3): how (N, 3) uint8 colours look in OKLab, to normal sight and the deficiencies."""
    shares = np.asarray(colors) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.concatenate([linear[None], linear @ DEFICIENCIES.mT])
    return np.cbrt(seen.clip(0, 1) @ _CONES.T) @ _LAB.T


@cache
def _palette() -> np.ndarray:
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    # Over dark images, dark colours would not be seen.
    candidates = candidates[appearances(candidates)[0, :, 0] >= 0.4]
    looks = appearances(candidates)
    # Pixels without a label, black and white are taken.
    taken = appearances(np.array([UNLABELLED, [0, 0, 0], [255, 255, 255]]))
    nearest = np.full(len(candidates), np.inf)
    for one in range(taken.shape[1]):
        np.minimum(nearest, _distances(looks, taken[:, one]), out=nearest)
    chosen = []
    for _ in range(200):
        best = int(nearest.argmax())
        chosen.append(best)
        np.minimum(nearest, _distances(looks, looks[:, best]), out=nearest)
    return candidates[chosen]


def _distances(looks: np.ndarray, one: np.ndarray) -> np.ndarray:
    """(N,): the distance of each colour to ``one`` (4, 3), for those to whom it is least."""
    return np.linalg.norm(looks - one[:, None], axis=-1).min(axis=0)
