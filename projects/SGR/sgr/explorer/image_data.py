"""What the page shows of one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..inspection.image import InspectedImage
from ..inspection.tokens import Histograms, Tokens
from ..modeling.outputs import REGIONS
from ..visualization import number_names
from .packing import pack, pack_fractions, pack_labels, pack_shares, rounded

# Tokens of an image with their attention: those that it uses most. For each of them, this many are
# listed to which it attends most, and which attend most to it.
ATTENTION_TOKENS, ATTENTION_PARTNERS = 64, 8
# Cells of a region along a side. Where the regions of an image pass this many characters, so that
# 200 images would pass 100 MB, those of the tokens that it uses least have the smaller number.
MOST_CELLS, COARSE_CELLS, REGION_CHARACTERS = 64, 16, 240_000


def shown_pixels(size: tuple[int, int], shown: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (h, 1) and columns (w,) of the pixels that a map of another size takes its values of."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(size, shown))
    return rows[:, None], columns


def image_content(
    inspected: dict[str, InspectedImage],
    attention: dict[str, dict[str, torch.Tensor]],
    class_names: list[str],
    shown: tuple[int, int],
) -> dict[str, Any]:
    """The data of an image.

    Args:
        inspected: name of a model -> what it does in the image.
        attention: name of a model -> what :func:`~sgr.inspection.attention.record_attention` saw.
        class_names: of the ground truth.
        shown: (height, width) of the image on the page.
    """
    first = next(iter(inspected.values()))
    rows, columns = shown_pixels(first.image.shape[:2], shown)

    def small(labels: np.ndarray | None) -> dict[str, Any] | None:
        return None if labels is None else pack_labels(labels[rows, columns])

    content: dict[str, Any] = {"labels": small(first.labels), "instances": None, "models": []}
    for one in inspected.values():
        if one.tokens is not None and one.tokens.instances is not None:
            names = number_names(one.instance_names or [])
            content["instances"] = {"map": small(one.tokens.instances.bins), "names": names}
            break
    for name, one in inspected.items():
        components = None
        if one.components is not None:
            classes = one.components.classes
            names = number_names([class_names[label] for label in classes])
            components = {"map": small(one.components.indices), "classes": classes, "names": names}
        kinds = {"tokens": one.tokens, "queries": one.queries}
        content["models"].append(
            {
                "prediction": small(one.prediction),
                "components": components,
                "kinds": {
                    kind: _token_content(tokens, one.input_size, attention[name].get(key))
                    for (kind, tokens), key in zip(kinds.items(), REGIONS.values())
                    if tokens is not None
                },
            }
        )
    return content


def coarser_regions(
    regions: np.ndarray, stride: int, most_cells: int = MOST_CELLS
) -> tuple[np.ndarray, int]:
    """Regions (K, h, w) with at most ``most_cells`` cells along a side, and their stride.

    Query masks are fine, and would be most of an explorer. Four cells become their mean, and so on.
    """
    while max(regions.shape[1:]) > most_cells:
        # A cell at the end that has no partner counts twice.
        padding = [(0, length % 2) for length in regions.shape[1:]]
        regions = np.pad(regions, [(0, 0), *padding], mode="edge")
        count, rows, columns = regions.shape
        regions = regions.reshape(count, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4))
        stride *= 2
    return regions, stride


def region_content(regions: np.ndarray, order: np.ndarray) -> dict[str, Any]:
    """Regions (K, h, w) as the page joins them.

    Args:
        order: the K tokens, the most used first.

    Returns:
        ``regions`` of as many of the first tokens as :data:`REGION_CHARACTERS` hold, and ``coarse``
        ones of the others: their ``tokens``, the ``factor`` between the sides of their cells and
        the fine ones, and their ``regions``; None if there are no others. Both are in the order of
        their numbers.
    """
    count, fine = len(regions), pack_shares(regions)
    while len(fine["data"]) > REGION_CHARACTERS:
        count = min(count - 1, count * REGION_CHARACTERS // len(fine["data"]))
        fine = pack_shares(regions[np.sort(order[:count])])
    if count == len(regions):
        return {"regions": fine, "coarse": None}
    others = np.sort(order[count:])
    coarse, factor = coarser_regions(regions[others], 1, COARSE_CELLS)
    tokens = pack(others.astype(np.uint16))
    return {
        "regions": fine,
        "coarse": {"tokens": tokens, "factor": factor, "regions": pack_shares(coarse)},
    }


def _token_content(
    tokens: Tokens, input_size: tuple[int, int], attention: torch.Tensor | None
) -> dict[str, Any]:
    regions, stride = coarser_regions(tokens.probabilities, tokens.stride)
    return {
        "stride": stride,
        # Pixels of the input along a cell in which centroids are counted.
        "cell": tokens.stride,
        "input": input_size,
        **region_content(regions, tokens.most_used(len(regions))),
        "mass": pack(tokens.mass),
        "peak": pack(tokens.peak),
        "centroids": pack(tokens.centroids),
        "components": None
        if tokens.components is None
        else pack(tokens.components.astype(np.int16)),
        "overlaps": None if tokens.overlaps is None else pack(tokens.overlaps),
        "classes": _histogram_content(tokens.classes),
        "instances": _histogram_content(tokens.instances),
        "attention": None if attention is None else _attention_content(tokens, attention[0]),
    }


def _histogram_content(histograms: Histograms | None) -> dict[str, Any] | None:
    if histograms is None or not len(histograms.labels):
        return None
    return {
        "labels": histograms.labels,
        "values": pack_fractions(histograms.values),
        "semantics": pack(histograms.semantics),
        "diversity": pack(histograms.diversity),
        "share": pack(histograms.share),
        "S": rounded(histograms.S),
        "D": rounded(histograms.D),
    }


def _attention_content(tokens: Tokens, weights: torch.Tensor) -> dict[str, Any]:
    """Of (layers, heads, K, K) weights the largest, from and to the tokens that are used most.

    The mean over the heads comes behind them, as one more head.
    """
    weights = torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)
    used = tokens.most_used(ATTENTION_TOKENS)
    partners = min(ATTENTION_PARTNERS, weights.shape[-1])
    content: dict[str, Any] = {"tokens": pack(used.astype(np.uint16))}
    index = torch.from_numpy(used).to(weights.device)
    for name, those in (("to", weights[:, :, index]), ("from", weights.mT[:, :, index])):
        largest, partner = those.topk(partners, dim=-1)
        content[name] = {
            "tokens": pack(partner.cpu().numpy().astype(np.uint16)),
            "weights": pack_shares(largest.cpu().numpy()),
        }
    return content


def image_summary(
    inspected: dict[str, InspectedImage], num_classes: int
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Figures of an image by which the page sorts.

    Returns:
        For each model accuracy, mIoU over the classes that the image or the prediction has, triples
        (class, intersection, union) in pixels, and S, D and number of active tokens by kind. And
        for each pair of models with predictions their indices, and the share of the pixels where
        they differ.
    """
    models = []
    for one in inspected.values():
        figures: dict[str, Any] = {"accuracy": None, "miou": None, "iou": [], "kinds": {}}
        if one.labels is not None and one.prediction is not None:
            figures.update(_agreement(one.labels, one.prediction, num_classes))
        for kind, tokens in (("tokens", one.tokens), ("queries", one.queries)):
            if tokens is None:
                continue
            figures["kinds"][kind] = {"active": int(tokens.active.sum())}
            for suffix, histograms in (("C", tokens.classes), ("I", tokens.instances)):
                if histograms is not None:
                    figures["kinds"][kind][f"S_{suffix}"] = histograms.S
                    figures["kinds"][kind][f"D_{suffix}"] = histograms.D
        models.append(rounded(figures))
    predictions = [one.prediction for one in inspected.values()]
    differ = [
        [first, second, rounded(float(np.mean(predictions[first] != predictions[second])))]
        for second in range(len(predictions))
        for first in range(second)
        if predictions[first] is not None and predictions[second] is not None
    ]
    return models, differ


def _agreement(labels: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict[str, Any]:
    counted = labels >= 0
    labels, prediction = labels[counted].astype(np.int64), prediction[counted]
    # The first column counts pixels for which nothing is predicted (-1).
    matrix = np.bincount(
        labels * (num_classes + 1) + prediction + 1, minlength=num_classes * (num_classes + 1)
    ).reshape(num_classes, num_classes + 1)
    right = matrix.diagonal(1)
    union = matrix[:, 1:].sum(axis=0) + matrix.sum(axis=1) - right
    present = np.flatnonzero(union)
    if not len(present):
        return {}
    return {
        "accuracy": float(right.sum() / matrix.sum()),
        "miou": float((right[present] / union[present]).mean()),
        "iou": np.stack([present, right[present], union[present]], axis=1).tolist(),
    }
