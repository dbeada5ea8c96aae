"""``components``: connected components, and the same class by class (Sec. 3.3, Fig. A)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import median

import cv2
import numpy as np

from sgr.data.components import connected_components

from .label_maps import IGNORE_LABEL, patches, with_noise
from .measure import Results, Row, compare

COMPARES = (
    "connected_components beside a full-size mask, an opening and a labelling with OpenCV for "
    "every class; deviation: share of the pixels in another component."
)


def literal_components(
    sem_seg: np.ndarray,
    *,
    min_area_ratio: float = 0.05,
    max_components: int = 64,
    kernel_size: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Find components, one class after another.

    Args:
        sem_seg: (H, W) uint8 labels. The others are those of :func:`connected_components`.

    Returns:
        (H, W) int16 index of each pixel's component or -1, and (C,) the components' classes,
        largest component first.
    """
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    found = []  # (area, class, labels of the class, label)
    for label in np.unique(sem_seg).tolist():
        if label == IGNORE_LABEL:
            continue
        mask = cv2.morphologyEx((sem_seg == label).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        num, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA].tolist()
        found += [(areas[index], label, labels, index) for index in range(1, num)]

    found.sort(key=lambda component: (-component[0], component[1]))
    kept = [part for part in found if part[0] >= min_area_ratio * found[0][0]][:max_components]
    indices = np.full(sem_seg.shape, -1, np.int16)
    for index, (_, _, labels, number) in enumerate(kept):
        indices[labels == number] = index
    return indices, np.array([label for _, label, _, _ in kept], np.int64)


def add_options(option) -> None:
    option("--size", default=512, help="side of a map, pixels")
    option("--classes", default=20, help="classes in a map, at most 255")
    option("--maps", default=4, help="different maps in a run")


def run(args: argparse.Namespace) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    smooth = [patches(rng, args.size, args.classes) for _ in range(args.maps)]
    noisy = [with_noise(rng, label_map, args.classes) for label_map in smooth]
    for name, label_maps in (("smooth", smooth), ("10 % noise", noisy)):
        row = compare(
            f"{args.maps} maps of {args.size}x{args.size}, {args.classes} classes, {name}",
            lambda: [literal_components(label_map) for label_map in label_maps],
            lambda: [connected_components(label_map) for label_map in label_maps],
            args,
            deviation=_share_of_other_components,
        )
        for who, seconds in zip(("literal", "SGR"), row.seconds):
            row.extra[f"{who} maps/s"] = f"{args.maps / median(seconds):.0f}"
        yield row


def _share_of_other_components(expected: Results, actual: Results) -> float:
    """The share of pixels in another component; equal ones may come in any order."""
    wrong = pixels = 0
    for (theirs, their_classes), (ours, our_classes) in zip(expected, actual):
        pixels += ours.size
        if not np.array_equal(our_classes, their_classes):
            wrong += ours.size
            continue
        kinds = np.append(our_classes, -1)  # the last one for pixels without a component
        shared = np.zeros((len(kinds), len(kinds)), np.int64)
        np.add.at(shared, (ours, theirs), 1)
        shared[kinds[:, None] != kinds] = 0
        wrong += ours.size - int(shared.max(axis=1).sum())
    return wrong / pixels
