"""``matcher``: matching and concept losses, and the same on full-size masks (Eq. 5, 6)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sgr.data.components import ComponentMap, connected_components
from sgr.modeling.reasoning import ConceptRegions
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher

from .label_maps import patches
from .measure import Results, Row, compare

COMPARES = (
    "ConceptMatcher and ConceptCriterion, forward and backward, beside the same image by image on "
    "full-size masks: costs by matrix products, losses in a loop over the components, the cosine "
    "in a loop over the pairs."
)

ALPHA, GAMMA = 0.25, 2.0
TERMS = ("focal", "dice", "cosine")


def literal_losses(
    logits: Tensor, component_maps: list[Tensor], counts: list[int], stride: int, max_active: int
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Compute the terms of Eq. 6 image by image on pixels.

    Weights are 1, regions unite by noisy-or, and terms are normalised as in
    :class:`ConceptCriterion`.

    Args:
        logits: (B, K, h, w) regions.
        component_maps: for each image (h * stride, w * stride) integers, index of the component or
            -1 for none.
        counts: components of each image.
        stride: pixels per cell.
        max_active: L.

    Returns:
        The terms, and (B, K) index of each concept's component or -1.
    """
    terms = {name: logits.new_zeros(()) for name in TERMS}
    assignments = []
    for image_logits, component_map, count in zip(logits, component_maps, counts):
        component_map = component_map.to(logits.device)
        masks = torch.stack([component_map == j for j in range(count)]).float()  # (C, H, W)
        labelled = (component_map >= 0).float()  # (H, W)
        with torch.no_grad():
            cost = _cost_matrix(_upsample(image_logits.sigmoid(), stride), masks, labelled, stride)
        assignment = _match(cost.cpu().numpy(), max_active)
        assignments.append(assignment)
        for j in range(count):
            concepts = np.flatnonzero(assignment == j).tolist()
            group = _upsample(image_logits[concepts].sigmoid(), stride)
            union = 1 - (1 - group).prod(dim=0)
            terms["focal"] = terms["focal"] + _focal(union, masks[j], labelled)
            terms["dice"] = terms["dice"] + _dice(union, masks[j], labelled, stride)
            terms["cosine"] = terms["cosine"] + _mean_cosine(group, labelled)
    return {name: term / sum(counts) for name, term in terms.items()}, np.array(assignments)


def _upsample(regions: Tensor, stride: int) -> Tensor:
    """Turn (K, h, w) regions into (K, h * stride, w * stride)."""
    return F.interpolate(regions[None], scale_factor=stride, mode="nearest")[0]


def _cost_matrix(regions: Tensor, masks: Tensor, labelled: Tensor, stride: int) -> Tensor:
    """Eq. 5: (K, H, W) regions and (C, H, W) masks -> (K, C)."""
    inside, outside = _focal_terms(regions)
    focal = torch.einsum("khw,chw->kc", inside * labelled, masks)
    focal = focal + torch.einsum("khw,chw->kc", outside * labelled, 1 - masks)
    regions = regions * labelled
    intersection = torch.einsum("khw,chw->kc", regions, masks) / stride**2
    size = (regions.sum(dim=(1, 2))[:, None] + masks.sum(dim=(1, 2))) / stride**2
    return focal / labelled.sum() + 1 - (2 * intersection + 1) / (size + 1)


def _focal_terms(p: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the focal loss of probabilities for target 1 and for target 0."""
    return -ALPHA * (1 - p) ** GAMMA * p.log(), -(1 - ALPHA) * p**GAMMA * (1 - p).log()


def _focal(p: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
    """Compute the focal loss of a region and a mask (H, W): mean over the labelled pixels."""
    return (torch.where(mask > 0, *_focal_terms(p)) * labelled).sum() / labelled.sum()


def _dice(p: Tensor, mask: Tensor, labelled: Tensor, stride: int) -> Tensor:
    """Compute the dice loss of a region and a mask (H, W), with sums in cells."""
    intersection = (p * labelled * mask).sum() / stride**2
    size = ((p * labelled).sum() + mask.sum()) / stride**2
    return 1 - (2 * intersection + 1) / (size + 1)


def _mean_cosine(group: Tensor, labelled: Tensor) -> Tensor:
    """Compute the mean cosine of all pairs of regions (k, H, W); 0 if there is no pair."""
    vectors = (group * labelled).flatten(1)
    pairs = [F.cosine_similarity(a, b, dim=0) for a, b in combinations(vectors, 2)]
    return torch.stack(pairs).mean() if pairs else group.new_zeros(())


def _match(cost: np.ndarray, max_active: int) -> np.ndarray:
    """Sec. 3.3 in two stages: (K, C) costs -> (K,) index of the concept's component or -1."""
    assignment = np.full(len(cost), -1)
    concepts, components = linear_sum_assignment(cost)
    assignment[concepts] = components
    while (assignment >= 0).sum() < max_active:
        left = np.flatnonzero(assignment < 0)
        row, component = np.unravel_index(cost[left].argmin(), cost[left].shape)
        assignment[left[row]] = component
    return assignment


def every_patch(rng: np.random.Generator, size: int | tuple[int, int], count: int) -> ComponentMap:
    """The components of a map of ``count`` patches; the small ones count, too."""
    return connected_components(
        patches(rng, size, count), min_area_ratio=0, max_components=count, kernel_size=1
    )


def add_options(option) -> None:
    option("--batch", default=4, help="images")
    option("--concepts", default=512, help="K")
    option("--max-active", default=64, help="L, at most K")
    option("--cells", default=16, help="side of the regions")
    option("--stride", default=32, help="pixels per cell")
    option("--components", default=20, help="components per image, at most K and 255")


def run(args: argparse.Namespace) -> Iterator[Row]:
    if args.concepts < max(args.max_active, args.components):
        raise ValueError(
            f"--concepts {args.concepts} is less than --max-active {args.max_active} or "
            f"--components {args.components}"
        )
    rng = np.random.default_rng(0)
    size = args.cells * args.stride
    found = [every_patch(rng, size, args.components) for _ in range(args.batch)]
    maps = [torch.from_numpy(components.indices) for components in found]
    counts = [len(components.classes) for components in found]
    logits = torch.randn(args.batch, args.concepts, args.cells, args.cells, device=args.device)
    logits = logits.mul(1.5).sub(2).requires_grad_()  # regions of 0.2 on average
    criterion = ConceptCriterion(ConceptMatcher(max_active=args.max_active), weight=1.0)

    def run_literal() -> Results:
        losses, assignment = literal_losses(logits, maps, counts, args.stride, args.max_active)
        return results(losses, assignment >= 0)

    def run_sgr() -> Results:
        output = criterion(ConceptRegions(logits, stride=args.stride), maps, counts)
        return results(output.losses, output.matched)

    def results(losses: dict[str, Tensor], matched: np.ndarray) -> Results:
        (gradient,) = torch.autograd.grad(sum(losses.values()), logits)
        return [*(losses[name].detach() for name in TERMS), matched, gradient]

    yield compare(
        f"{args.batch} images of {size}x{size}, stride {args.stride}, K {args.concepts}, "
        f"{sum(counts) / args.batch:g} components",
        run_literal,
        run_sgr,
        args,
    )
