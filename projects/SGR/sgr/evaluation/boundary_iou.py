"""Boundary IoU: the IoU of what lies near the contours of masks (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def boundary_distance(size: tuple[int, int], ratio: float) -> int:
    """The distance from a contour, in pixels, within which pixels count; at least 1.

    Args:
        size: (height, width) of the image.
        ratio: the distance as a share of the diagonal.
    """
    return max(1, round(ratio * math.hypot(*size)))


def boundary_pixels(labels: Tensor, distance: int) -> Tensor:
    """The pixels that lie near the contour of their own class.

    A pixel does if the square of side 2 * distance + 1 around it has another label, or leaves the
    image. That is what ``distance`` erosions by a square of 3 x 3 take away from the mask of its
    class, where everything outside of the image is no mask.

    Args:
        labels: (H, W) integers.
        distance: in pixels, at least 1.

    Returns:
        (H, W) bool, on the same device. The time grows with the logarithm of the distance, and
        not with the number of classes.
    """
    outside = pad(labels + 1 - labels.min(), (1, 1, 1, 1))  # 0 is no label
    # Neighbours with different labels; a window without such a pair has one label. Along the axis
    # on which they are neighbours, a window has one pair less than pixels.
    pairs, pixels = 2 * distance, 2 * distance + 1
    rows = outside[1:, 1:-1] != outside[:-1, 1:-1]  # (H + 1, W)
    columns = outside[1:-1, 1:] != outside[1:-1, :-1]  # (H, W + 1)
    return _any(rows, pairs, pixels) | _any(columns, pixels, pairs)


def _any(marks: Tensor, height: int, width: int) -> Tensor:
    """Whether there is a mark in the window of this size around each place.

    A window of even size lies around the middle between two places, so the result is smaller by 1.
    """
    (above, left) = ((size - 1) // 2 for size in (height, width))
    marks = pad(marks, (left, left, above, above))
    for dim, size in enumerate((height, width)):
        reach = 1  # each step makes windows of up to twice the size out of two
        while reach < size:
            step = min(reach, size - reach)
            length = marks.shape[dim] - step
            marks = marks.narrow(dim, 0, length) | marks.narrow(dim, step, length)
            reach += step
    return marks


def boundary_classes(truth: Tensor, predicted: Tensor, num_classes: int, ratio: float) -> Tensor:
    """The classes of the boundary pixels of an image, for counting them.

    Ignored pixels belong to no mask, neither to that of the ground truth nor to that of the
    prediction. So both have the same contour there.

    Args:
        truth: (H, W) integers, the true class of each pixel; -1 for ignored ones.
        predicted: (H, W) integers on the same device. Labels that are no class belong to no mask.
        num_classes: C.
        ratio: see :func:`boundary_distance`.

    Returns:
        (3, H, W) integers: 1 + the class, or 0 for no boundary pixel. They are the boundary pixels
        of the ground truth, those of the prediction, and those that belong to both with one class.
    """
    distance = boundary_distance(tuple(truth.shape), ratio)
    predicted = predicted.where((predicted >= 0) & (predicted < num_classes), -1)
    predicted = predicted.where(truth >= 0, -1)
    of_truth = (truth + 1) * boundary_pixels(truth, distance)
    of_prediction = (predicted + 1) * boundary_pixels(predicted, distance)
    return torch.stack([of_truth, of_prediction, of_truth * (of_truth == of_prediction)])
