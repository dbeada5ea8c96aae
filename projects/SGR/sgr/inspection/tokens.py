"""The tokens of one image: their regions, what lies under them, and what they are matched to."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.components import ComponentMap
from ..evaluation.token_metrics import (
    diversity,
    label_histograms,
    semantics,
    share_on_labels,
    token_distances,
    token_entropies,
)
from ..modeling.reasoning.concept_regions import ConceptRegions
from ..modeling.supervision.matcher import ConceptMatcher
from ..modeling.supervision.targets import component_targets


@dataclass(frozen=True)
class Histograms:
    """How the weight of K regions is spread over the N labels of an image (Sec. 4).

    Attributes:
        labels: (N,) int64, the labels that the image has, in increasing order.
        bins: (H, W) int64, for each pixel the index of its label in ``labels``, or -1 for none.
        values: (K, N) float32. A row sums to 1, or to 0 for a region without weight on a labelled
            pixel.
        share: (K,) float32 in [0, 1], how much of the region's weight lies on labelled pixels.
        semantics: (K,) float32, the entropy of each row, in nats; NaN for rows of zeros.
        diversity: (K,) float32, the squared distance of each row to the mean row; NaN for rows of
            zeros.
        S, D: the means of these over the K tokens, as the token metrics define them; NaN if no
            token has weight on a labelled pixel.
    """

    labels: np.ndarray
    bins: np.ndarray
    values: np.ndarray
    share: np.ndarray
    semantics: np.ndarray
    diversity: np.ndarray
    S: float
    D: float


@dataclass(frozen=True)
class Tokens:
    """K tokens of one image.

    Attributes:
        probabilities: (K, h, w) float32 in [0, 1], the regions on the cells of the feature map.
        stride: pixels of the network's input along each side of a cell. Cell (y, x) covers the rows
            ``[y * stride, (y + 1) * stride)`` and the same of the columns.
        mass: (K,) float32, the sum of a region over the cells.
        peak: (K,) float32, the largest value of a region.
        active: (K,) bool, whether the peak passes the threshold.
        centroids: (K, 2) float32, (x, y) in cells counted from 1 (Eq. 4); (0, 0) without mass.
        components: (K,) int64, the index of the component that the matcher gives to the token, or
            -1 for none; None where no components are given.
        overlaps: (K,) float32 in [0, 1], the IoU of the region and that component over the pixels
            that have a component: the sum of the smaller of the region and the component's mask
            over the sum of the larger; NaN for a token without a component.
        classes: over the classes of the image; None where no labels are given.
        instances: over its instances of things; None where none are given.
    """

    probabilities: np.ndarray
    stride: int
    mass: np.ndarray
    peak: np.ndarray
    active: np.ndarray
    centroids: np.ndarray
    components: np.ndarray | None = None
    overlaps: np.ndarray | None = None
    classes: Histograms | None = None
    instances: Histograms | None = None

    def most_used(self, count: int) -> np.ndarray:
        """The tokens whose regions carry most of an image's features, the most used first.

        They are ranked by mass times peak. The mass alone would prefer regions that are faint
        everywhere to small ones that are sure.

        Returns:
            (min(count, K),) indices.
        """
        return np.argsort(-self.mass * self.peak, kind="stable")[:count]


def inspect_tokens(
    regions: ConceptRegions,
    input_size: tuple[int, int] | None = None,
    *,
    labels: np.ndarray | None = None,
    instances: np.ndarray | None = None,
    components: ComponentMap | None = None,
    matcher: ConceptMatcher | None = None,
    active_threshold: float = 0.5,
) -> Tokens:
    """Measure the tokens of one image: those of SGR, of GloRe, or the queries of a mask classifier.

    Args:
        regions: of batch size 1, with a stride, without cells that lie wholly in the padding.
        input_size: (height, width) of the network's input for the image, without padding; by
            default the size that the cells cover.
        labels, instances: (H, W) integers at any resolution, negative where a pixel has none.
        components: of the image, at any resolution.
        matcher: gives components to tokens; by default one with the options of the paper. Where
            there are fewer tokens than its ``max_active``, it may match all of them.
        active_threshold: see :class:`Tokens`.

    Raises:
        ValueError: if the regions do not cover the image.
    """
    stride = regions.stride
    assert stride is not None  # a recorder asks the module for it
    regions = regions._replace(logits=regions.logits.detach())
    probabilities = regions.probabilities[0].cpu()
    cells = probabilities.numpy()
    if input_size is None:
        input_size = cells.shape[1] * stride, cells.shape[2] * stride
    mass, peak = cells.sum(axis=(1, 2)), cells.max(axis=(1, 2))
    rows, columns = (np.arange(1, length + 1, dtype=np.float32) for length in cells.shape[1:])
    centroids = np.stack([cells.sum(axis=1) @ columns, cells.sum(axis=2) @ rows], axis=1)
    matched = overlaps = None
    if components is not None:
        matcher = matcher or ConceptMatcher()
        matched, overlaps = _match(regions.logits, components, stride, input_size, matcher)

    return Tokens(
        probabilities=cells,
        stride=stride,
        mass=mass,
        peak=peak,
        active=peak > active_threshold,
        centroids=centroids / np.maximum(mass, np.finfo(np.float32).tiny)[:, None],
        components=matched,
        overlaps=overlaps,
        classes=_histograms(probabilities, labels, stride, input_size),
        instances=_histograms(probabilities, instances, stride, input_size),
    )


def _histograms(
    probabilities: Tensor, labels: np.ndarray | None, stride: int, input_size: tuple[int, int]
) -> Histograms | None:
    if labels is None:
        return None
    values, present, bins = label_histograms(
        probabilities, torch.from_numpy(labels), stride, input_size=input_size
    )
    share = share_on_labels(probabilities, bins, stride, input_size=input_size)
    measured = values.any(dim=1)
    return Histograms(
        labels=present.numpy(),
        bins=bins.numpy(),
        values=values.numpy(),
        share=share.numpy(),
        semantics=token_entropies(values).where(measured, torch.nan).numpy(),
        diversity=token_distances(values).where(measured, torch.nan).numpy(),
        S=semantics(values).item(),
        D=diversity(values).item(),
    )


def _match(
    logits: Tensor,
    components: ComponentMap,
    stride: int,
    input_size: tuple[int, int],
    matcher: ConceptMatcher,
) -> tuple[np.ndarray, np.ndarray]:
    """The component of each token, and the IoU with it: see :class:`Tokens`."""
    grid = tuple(logits.shape[-2:])
    logits = logits.float().cpu().flatten(2)
    height, width = components.indices.shape
    # The pixel of the map that a pixel of the input falls into.
    rows = (2 * np.arange(input_size[0]) + 1) * height // (2 * input_size[0])
    columns = (2 * np.arange(input_size[1]) + 1) * width // (2 * input_size[1])
    targets = component_targets(
        [torch.from_numpy(components.indices[rows[:, None], columns])],
        [len(components.classes)],
        grid,
        stride,
        logits.device,
    )
    matcher = copy(matcher)
    matcher.max_active = min(matcher.max_active, logits.shape[1])
    matched = matcher(logits, targets)[0]

    # A mask is 0 or 1 in a pixel. So the smaller of it and a region is their product, which cells
    # sum up exactly.
    regions, masks = logits[0].sigmoid(), targets.masks[0] * targets.weights
    shared = regions @ masks.T  # (K, C)
    union = (regions @ targets.weights[0])[:, None] + masks.sum(dim=1) - shared
    # The last column is that of -1, no component.
    overlaps = F.pad(shared / union, (0, 1), value=torch.nan)[torch.arange(len(matched)), matched]
    return matched.numpy(), overlaps.numpy()
