"""``token-metrics``: S and D of an image's tokens, and the same from full-size masks (Sec. 4)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sgr.evaluation import diversity, label_histograms, semantics

from .label_maps import IGNORE_LABEL, patches
from .measure import Results, Row, compare

COMPARES = (
    "S_C and D_C of one image by sgr.evaluation beside full-size masks of the classes and of all K "
    "tokens, 32 at a time."
)


def literal_metrics(regions: Tensor, labels: Tensor, stride: int, chunk: int = 32) -> Results:
    """Sum the weight of every token over the pixels of each class, and measure S and D.

    Args:
        regions: (K, h, w) probabilities.
        labels: (H, W) integers.
        stride: pixels per cell.
        chunk: number of full-size masks at a time; all K would take gigabytes.

    Returns:
        S_C and D_C.
    """
    height, width = labels.shape
    classes = [label for label in labels.unique().tolist() if label != IGNORE_LABEL]
    class_masks = torch.stack([labels == label for label in classes]).to(regions.dtype)
    histograms = []
    for part in regions.split(chunk):
        masks = part.repeat_interleave(stride, dim=1).repeat_interleave(stride, dim=2)
        masks = masks[:, :height, :width]
        histograms.append(torch.einsum("khw,chw->kc", masks, class_masks))
    histogram = torch.cat(histograms)
    histogram = histogram / histogram.sum(dim=1, keepdim=True)
    entropy = -(histogram * histogram.clamp_min(1e-12).log()).sum(dim=1)
    distance = (histogram - histogram.mean(dim=0)).square().sum(dim=1)
    return [entropy.mean(), distance.mean()]


def _metrics(regions: Tensor, labels: Tensor, stride: int) -> Results:
    histograms, _, _ = label_histograms(
        regions, labels, stride, input_size=labels.shape, ignore_label=IGNORE_LABEL
    )
    return [semantics(histograms), diversity(histograms)]


def add_options(option) -> None:
    option("--size", nargs=2, metavar=("H", "W"), default=[512, 683], help="of the image, pixels")
    option("--strides", nargs="+", default=[32, 4], help="pixels per cell, of each case")
    option("--concepts", nargs="+", default=[512, 100], help="K of each case")
    option("--classes", default=20, help="classes in the image, at most 255")


def run(args: argparse.Namespace) -> Iterator[Row]:
    if len(args.strides) != len(args.concepts):
        raise ValueError(
            "--strides and --concepts go together, one of each for a case; they have "
            f"{len(args.strides)} and {len(args.concepts)} values"
        )
    height, width = args.size
    label_map = patches(np.random.default_rng(0), max(args.size), args.classes)[:height, :width]
    labels = torch.from_numpy(label_map.copy()).to(args.device)
    for stride, concepts in zip(args.strides, args.concepts):
        rows, columns = -(-height // stride), -(-width // stride)
        regions = torch.randn(concepts, rows, columns, device=args.device).mul(2).sub(2).sigmoid()
        yield compare(
            f"{height}x{width} labels, stride {stride}, K {concepts}",
            partial(literal_metrics, regions, labels, stride),
            partial(_metrics, regions, labels, stride),
            args,
        )
