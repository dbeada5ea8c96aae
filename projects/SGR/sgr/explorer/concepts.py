"""What a concept stands for over all images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..inspection.tokens import Tokens
from .packing import pack, pack_fractions

# For each concept, the images that are listed, and the classes with at least this share.
BEST_IMAGES = 12
LEAST_SHARE = 0.01


class ConceptSummary:
    """Sums up the K tokens of one kind of a model, image by image.

    Args:
        num_classes: of the ground truth, C.

    Memory: K * C numbers, and 7 K per image.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.images: list[int] = []
        self._rows: list[np.ndarray] = []  # per image (K, 7): mass, peak, S, box
        self._active = self._matched = self._classes = np.zeros(0)

    def add(self, image: int, tokens: Tokens, input_size: tuple[int, int]) -> None:
        """Count the tokens of an image.

        Args:
            image: its index in the explorer.
            input_size: (height, width) of the network's input, without padding.
        """
        count = len(tokens.mass)
        if not self._rows:
            self._active, self._matched = np.zeros(count, int), np.zeros(count, int)
            self._classes = np.zeros((count, self.num_classes))
        entropy = np.full(count, np.nan)
        if tokens.classes is not None:
            entropy = tokens.classes.semantics
            # Labels of an image are distinct, so no sum of two of them is lost.
            self._classes[:, tokens.classes.labels] += tokens.mass[:, None] * tokens.classes.values
        self._active += tokens.active
        if tokens.components is not None:
            self._matched += tokens.components >= 0
        boxes = region_boxes(tokens.probabilities, tokens.stride, input_size)
        self.images.append(image)
        self._rows.append(np.column_stack([tokens.mass, tokens.peak, entropy, boxes]))

    def content(self) -> dict[str, Any]:
        """What the page shows of the K concepts; packed arrays of K rows where not said otherwise.

        ``best`` are the images (K, N) where mass times peak is largest, the best one first, and
        ``boxes`` (K, N, 4) the part of each image where the region passes half of its peak.
        """
        rows = np.stack(self._rows, axis=1)  # (K, images, 7)
        mass, peak, entropy = np.moveaxis(rows[..., :3], -1, 0)
        best = np.argsort(-mass * peak, axis=1, kind="stable")[:, :BEST_IMAGES]
        measured = ~np.isnan(entropy)
        means = np.where(measured, entropy, 0).sum(axis=1) / np.maximum(measured.sum(axis=1), 1)
        total = self._classes.sum(axis=1, keepdims=True)
        shares = self._classes / np.where(total > 0, total, 1)
        return {
            "count": len(rows),
            "mass": pack(mass.mean(axis=1)),
            "peak": pack(peak.max(axis=1)),
            "semantics": pack(np.where(measured.any(axis=1), means, np.nan)),
            "active": pack(self._active.astype(np.uint16)),
            "matched": pack(self._matched.astype(np.uint16)),
            # Per concept pairs of a class and its share, the largest first.
            "classes": [
                [
                    [int(label), round(float(row[label]), 3)]
                    for label in np.argsort(-row, kind="stable")
                    if row[label] >= LEAST_SHARE
                ]
                for row in shares
            ],
            "best": pack(np.asarray(self.images, np.uint16)[best]),
            "boxes": pack_fractions(np.take_along_axis(rows[..., 3:], best[..., None], axis=1)),
        }


def region_boxes(regions: np.ndarray, stride: int, input_size: tuple[int, int]) -> np.ndarray:
    """The box of the cells where each region passes half of its peak.

    Args:
        regions: (K, h, w) in [0, 1].
        stride: pixels of the input along each side of a cell.
        input_size: (height, width) of the input.

    Returns:
        (K, 4): left, top, right and bottom, as shares of the image.
    """
    high = regions >= 0.5 * regions.max(axis=(1, 2), keepdims=True)
    ends = []
    for axis, length in ((1, input_size[1]), (2, input_size[0])):
        line = high.any(axis=axis)  # (K, cells along the other axis)
        first, behind = line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)
        ends.append(np.minimum(np.stack([first, behind]) * stride / length, 1))
    (left, right), (top, bottom) = ends
    return np.stack([left, top, right, bottom], axis=1)
