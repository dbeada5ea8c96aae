"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), with NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Two segments match if their IoU is larger than 1 / 2, which makes the matching unique. The test
# below, 2 * intersection > union, is exact.


class PanopticCounts(NamedTuple):
    """The counts behind panoptic quality, per class. Counts of several images can be added.

    Attributes:
        iou: (C,) float64, sum of the IoU of the matched pairs.
        true_positives: (C,) int64, matched pairs.
        false_positives: (C,) int64, predicted segments without a match.
        false_negatives: (C,) int64, segments of the ground truth without a match.
    """

    iou: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticCounts:
        return cls(np.zeros(num_classes), *np.zeros((3, num_classes), np.int64))

    def plus(self, other: PanopticCounts) -> PanopticCounts:
        return PanopticCounts(*(mine + theirs for mine, theirs in zip(self, other)))

    @property
    def measured(self) -> np.ndarray:
        """(C,) bool: whether the class occurs in the ground truth or in a prediction."""
        return (self.true_positives + self.false_positives + self.false_negatives) > 0

    def qualities(self) -> np.ndarray:
        """(C, 3) PQ = SQ * RQ, SQ and RQ in [0, 1]; zeros for classes without a match."""
        true_positives = np.maximum(self.true_positives, 1)
        errors = (self.false_positives + self.false_negatives) / 2
        segmentation = self.iou / true_positives
        recognition = self.true_positives / np.maximum(self.true_positives + errors, 0.5)
        return np.stack([segmentation * recognition, segmentation, recognition], axis=1)


def match_segments(
    predicted: np.ndarray,
    predicted_classes: np.ndarray,
    truth: np.ndarray,
    truth_classes: np.ndarray,
    *,
    truth_is_crowd: np.ndarray,
    num_classes: int,
) -> PanopticCounts:
    """Match the segments of one image with those of its ground truth.

    - Two segments of one class match if their IoU is larger than 0.5. Void pixels of the ground
      truth do not count in the union. Pixels without a predicted segment count as missed.
    - Crowds match nothing and are never missed. Their pixels count in the unions.
    - A prediction without a match is no error if more than half of it lies on void pixels and
      crowds of its class.

    COCO's ``panopticapi`` has the same rules (but looks at one crowd per class only).
    ``PanopticQuality`` of torchmetrics has others: pixels without a *predicted* segment do not
    count in the unions there, so a model that leaves pixels out loses nothing.

    Cost: one pass over the pixels, and a table of all pairs of segments.

    Args:
        predicted: (H, W) integers, the segment of each pixel in [0, P), or -1 for none.
        predicted_classes: (P,) in [0, num_classes).
        truth: (H, W) integers, the segment of each pixel in [0, T), or -1 for void pixels.
        truth_classes: (T,) in [0, num_classes).
        truth_is_crowd: (T,) bool.
        num_classes: C.

    Returns:
        The counts of this image. A segment of the ground truth without a pixel is missed, as in
        COCO's script. A predicted one, which is an error there, does not count.
    """
    num_predicted, num_truth = len(predicted_classes), len(truth_classes)
    pairs = (truth.astype(np.int64) + 1) * (num_predicted + 1) + (predicted + 1)
    overlap = np.bincount(pairs.ravel(), minlength=(num_truth + 1) * (num_predicted + 1))
    overlap = overlap.reshape(num_truth + 1, num_predicted + 1)
    truth_area, predicted_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
    on_void = overlap[0, 1:]
    overlap = overlap[1:, 1:]

    union = truth_area[:, None] + (predicted_area - on_void) - overlap
    same_class = truth_classes[:, None] == predicted_classes
    matched = same_class & ~truth_is_crowd[:, None] & (2 * overlap > union)
    found, by = np.nonzero(matched)
    iou = overlap[found, by] / union[found, by]

    missed = ~truth_is_crowd & ~matched.any(axis=1)
    forgiven = on_void + (overlap * (same_class & truth_is_crowd[:, None])).sum(axis=0)
    wrong = (predicted_area > 0) & ~matched.any(axis=0) & (2 * forgiven <= predicted_area)

    def per_class(classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(classes, weights, minlength=num_classes)

    return PanopticCounts(
        iou=per_class(truth_classes[found], iou),
        true_positives=per_class(truth_classes[found]),
        false_positives=per_class(predicted_classes[wrong]),
        false_negatives=per_class(truth_classes[missed]),
    )
