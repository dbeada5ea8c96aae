"""Online clustering: each class divides its cells among its prototypes, in equal shares."""

from __future__ import annotations

import torch
from torch import Tensor

from .workers import logsumexp_over_workers


def equal_shares(
    scores: Tensor, classes: Tensor, num_classes: int, *, iterations: int = 3
) -> Tensor:
    """Assign cells softly to the prototypes of their class, by Sinkhorn's iterations.

    For each class, ``exp(scores)`` is scaled so that all prototypes have the same mass, then so
    that all cells have the same mass, and so on. Cells of all workers take part. All is done in
    logarithms, so that no score is too large. Constant factors of a class are left out, because the
    last step takes them away.

    Args:
        scores: (N, M) float32, of each cell for the prototypes of its class: cosines / epsilon.
        classes: (N,) int64 in [0, num_classes).
        num_classes: K; the same on all workers.
        iterations: at least 1.

    Returns:
        (N, M) shares. Each row sums to 1. With more iterations, the M columns of a class approach
        equal sums. A class with fewer cells than M gives some prototypes less than a cell.

    Cost: ``4 N M`` exponentials for each iteration, and a collective operation of K M numbers.
    """
    # Logarithms of what scales the prototypes and the cells.
    prototypes = scores.new_zeros(num_classes, scores.shape[1])
    cells = scores.new_zeros(len(scores), 1)
    for _ in range(iterations):
        masses = logsumexp_of_classes(scores + cells, classes, num_classes)
        prototypes = -logsumexp_over_workers(masses)
        cells = -(scores + prototypes[classes]).logsumexp(dim=1, keepdim=True)
    return (scores + prototypes[classes]).softmax(dim=1)


def logsumexp_of_classes(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """``log sum exp`` over the rows of each class.

    Args:
        values: (N, M).
        classes: (N,) int64 in [0, num_classes).

    Returns:
        (num_classes, M); -inf for a class without rows.
    """
    shape = num_classes, values.shape[1]
    index = classes[:, None].expand_as(values)
    largest = values.new_full(shape, -torch.inf).scatter_reduce(0, index, values, "amax")
    sums = values.new_zeros(shape).index_add(0, classes, (values - largest[classes]).exp())
    return sums.log() + largest
