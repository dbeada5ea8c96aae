"""``mask-inference``: from queries to results strip by strip, and with full-size masks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor
from torch.nn import functional as F

from sgr.modeling.layers.strips import Strips
from sgr.modeling.mask_classification import (
    instance_inference,
    merge_by_pixel_within_masks,
    semantic_inference,
)

from .measure import Results, Row, compare

COMPARES = (
    "semantic_inference, merge_by_pixel_within_masks and instance_inference beside the same on all "
    "masks at full size, in the order of steps of the public MaskFormer and Mask2Former; results "
    "are part of the memory; deviation: of scores relative, of maps and masks the share of other "
    "pixels."
)

STRIDE, DIVISIBILITY = 4, 32
OVERLAP_THRESHOLD = 0.5
MAX_INSTANCES = 100

Size = tuple[int, int]


def _full_size(mask_logits: Tensor, size: Size) -> Tensor:
    """Resize (Q, h, w) logits to the (Q, H', W') pixels of the padded image."""
    return F.interpolate(mask_logits[None], _padded(size), mode="bilinear", align_corners=False)[0]


def literal_scores(class_logits: Tensor, mask_logits: Tensor, size: Size) -> Tensor:
    """Compute the (C, H, W) scores of the image."""
    masks = _full_size(mask_logits, size).sigmoid()
    scores = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], masks)
    del masks
    return sem_seg_postprocess(scores, size, *size)


def literal_labels(class_logits: Tensor, mask_logits: Tensor, size: Size) -> Tensor:
    """Find the (H, W) best class of every pixel."""
    return literal_scores(class_logits, mask_logits, size).argmax(0)


def literal_panoptic(
    class_logits: Tensor, mask_logits: Tensor, size: Size, things: range
) -> Results:
    """Make (H, W) segment ids and (N,) categories, as Mask2Former defines them."""
    masks = sem_seg_postprocess(_full_size(mask_logits, size), size, *size).sigmoid()
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = classes != class_logits.shape[-1] - 1
    scores, classes, masks = scores[kept], classes[kept], masks[kept]
    owner = (scores[:, None, None] * masks).argmax(0)
    ids = torch.zeros(size, dtype=torch.int32, device=owner.device)
    categories, stuff = [], {}
    for query, category in enumerate(classes.tolist()):
        owned, inside = owner == query, masks[query] >= 0.5
        seen = owned & inside
        if not seen.any() or owned.sum() / inside.sum() < OVERLAP_THRESHOLD:
            continue
        if category not in stuff:
            categories.append(category)
        ids[seen] = stuff.get(category, len(categories))
        if category not in things:
            stuff.setdefault(category, len(categories))
    return [ids, torch.tensor(categories)]


def literal_instances(class_logits: Tensor, mask_logits: Tensor, size: Size) -> Results:
    """Choose instances: (N,) scores, (N,) classes and N masks (H, W)."""
    masks = sem_seg_postprocess(_full_size(mask_logits, size), size, *size)
    prob = class_logits.softmax(-1)[:, :-1]
    scores, pairs = prob.flatten().topk(min(MAX_INSTANCES, prob.numel()))
    masks = masks[pairs.div(prob.shape[1], rounding_mode="floor")]
    inside = (masks > 0).float()
    mass = (masks.sigmoid().flatten(1) * inside.flatten(1)).sum(1)
    quality = mass / (inside.flatten(1).sum(1) + 1e-6)
    return [scores * quality, pairs % prob.shape[1], *(inside > 0)]


def add_options(option) -> None:
    option("--size", nargs=2, metavar=("H", "W"), default=[2000, 3000], help="of the image, pixels")
    option("--queries", default=100, help="Q")
    option("--classes", default=150, help="C, of which the first half are things")


def run(args: argparse.Namespace) -> Iterator[Row]:
    size = tuple(args.size)
    things = range((args.classes + 1) // 2)
    rows, columns = (side // STRIDE for side in _padded(size))
    # Blobs of several cells, some of them in each mask.
    seeds = torch.randn(1, args.queries, -(-rows // 25), -(-columns // 25)).mul(5).sub(2)
    mask_logits = F.interpolate(seeds, (rows, columns), mode="bicubic")[0].to(args.device)
    class_logits = torch.randn(args.queries, args.classes + 1, device=args.device).mul(3)

    def resize(masks: Strips) -> Strips:
        return masks.resize(*_padded(size)).crop(*size)

    def panoptic() -> Results:
        ids, segments = merge_by_pixel_within_masks(
            class_logits,
            mask_logits,
            thing_classes=things,
            score_threshold=0.0,
            overlap_threshold=OVERLAP_THRESHOLD,
            resize=resize,
        )
        return [ids, torch.tensor([segment["category_id"] for segment in segments])]

    def instances() -> Results:
        found = instance_inference(
            class_logits, mask_logits, max_instances=MAX_INSTANCES, resize=resize
        )
        return [found.scores, found.pred_classes, *found.pred_masks]

    semantic = partial(semantic_inference, class_logits, mask_logits, resize=resize)
    literal = (class_logits, mask_logits, size)
    cases = {
        "semantic, scores": (lambda: literal_scores(*literal), semantic),
        "semantic, labels": (lambda: [literal_labels(*literal)], lambda: [semantic(labels=True)]),
        "panoptic": (partial(literal_panoptic, *literal, things), panoptic),
        "instances": (partial(literal_instances, *literal), instances),
    }
    about = f"{size[0]}x{size[1]}, {args.queries} queries, {args.classes} classes"
    for name, (run_literal, run_sgr) in cases.items():
        yield compare(f"{name}, {about}", run_literal, run_sgr, args, deviation=_deviation)


def _padded(size: Size) -> Size:
    return tuple(-(-side // DIVISIBILITY) * DIVISIBILITY for side in size)


def _deviation(expected: Results, actual: Results) -> float:
    """Find the largest relative difference of scores, or share of unequal integers.

    Scores are a (C, H, W) tensor, which counts as a sequence of maps. So no copy of all is made.
    """
    worst = 0.0
    for first, second in zip(expected, actual, strict=True):
        if first.is_floating_point():
            difference = (first - second).abs().max() / first.abs().max()
        elif first.shape == second.shape:
            difference = (first != second).float().mean() if first.numel() else 0.0
        else:
            difference = 1.0
        worst = max(worst, float(difference))
    return worst
