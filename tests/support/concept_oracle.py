"""Eq. 5 to 7 pixel by pixel, in float64: slow, and as the paper writes them."""

import itertools

import numpy as np


def upsample(probabilities, stride):
    """(K, h, w) -> (K, h * stride, w * stride): a cell's region over each of its pixels."""
    return probabilities.repeat(stride, axis=1).repeat(stride, axis=2)


def focal(p, mask, labelled, alpha=0.25, gamma=2.0):
    """Mean over the labelled pixels of the focal loss of probabilities ``p``."""
    total = 0.0
    for y, x in zip(*np.nonzero(labelled)):
        if mask[y, x]:
            total += -alpha * (1 - p[y, x]) ** gamma * np.log(p[y, x])
        else:
            total += -(1 - alpha) * p[y, x] ** gamma * np.log(1 - p[y, x])
    return total / max(labelled.sum(), 1)


def dice(p, mask, labelled, stride):
    """With sums in cells, as the smoothing 1 is meant."""
    area = stride**2
    intersection = (p * mask * labelled).sum() / area
    return 1 - (2 * intersection + 1) / (
        (p * labelled).sum() / area + (mask * labelled).sum() / area + 1
    )


def cost(p, mask, labelled, stride, rho=1.0):
    return focal(p, mask, labelled) + rho * dice(p, mask, labelled, stride)


def cosine(p, q, labelled):
    p, q = (p * labelled).ravel(), (q * labelled).ravel()
    return p @ q / np.sqrt((p @ p) * (q @ q))


def union(group, how):
    if how == "sum":
        return sum(group)
    outside = 1.0
    for p in group:
        outside = outside * (1 - p)
    return 1 - outside


def hungarian(costs):
    """By trying every assignment of C components to C of the K concepts (C <= K)."""
    num_concepts, num_components = costs.shape
    return min(
        itertools.permutations(range(num_concepts), num_components),
        key=lambda concepts: sum(costs[k, j] for j, k in enumerate(concepts)),
    )


def match(costs, max_active):
    """Sec. 3.3 in two stages: (K,) index of a component or -1."""
    num_concepts, num_components = costs.shape
    assignment = [-1] * num_concepts
    for j, k in enumerate(hungarian(costs)):
        assignment[k] = j
    for _ in range(max_active - num_components):
        left = [k for k in range(num_concepts) if assignment[k] < 0]
        k, j = min(itertools.product(left, range(num_components)), key=lambda kj: costs[kj])
        assignment[k] = j
    return assignment


def losses(probabilities, component_map, count, assignment, stride, how, normaliser):
    """Focal, dice and cosine terms of Eq. 6 for one image; see ConceptCriterion for the means."""
    labelled = component_map >= 0
    regions = upsample(probabilities, stride)
    focal_sum = dice_sum = cosine_sum = 0.0
    for j in range(count):
        group = [regions[k] for k in range(len(regions)) if assignment[k] == j]
        mask = component_map == j
        united = union(group, how)
        focal_sum += focal(united, mask, labelled)
        dice_sum += dice(united, mask, labelled, stride)
        pairs = [
            cosine(group[i], group[k], labelled)
            for i in range(len(group))
            for k in range(len(group))
            if i != k
        ]
        cosine_sum += np.mean(pairs) if pairs else 0.0
    return focal_sum / normaliser, dice_sum / normaliser, cosine_sum / normaliser
