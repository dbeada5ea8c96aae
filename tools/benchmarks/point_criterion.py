"""``point-criterion``: Mask2Former's matching and losses at points, as PointRend draws them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sgr.modeling.layers.losses import dice_loss
from sgr.modeling.mask_classification import PointMatcher, PointSetCriterion

from .measure import Results, Row, compare

COMPARES = (
    "PointSetCriterion and PointMatcher, forward and backward, beside the same layer by layer, "
    "with random points of each pair, on masks of floats. The points differ, so results are not "
    "compared here; tests compare their means."
)
CLASSES = 150
WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


def literal_losses(layers: list[dict], targets: list[dict], points: int) -> Tensor:
    """Match each layer and image, and add up the weighted losses of all layers."""
    total = torch.zeros((), device=layers[0]["pred_masks"].device)
    count = sum(len(target["labels"]) for target in targets)
    weight = total.new_ones(CLASSES + 1)
    weight[-1] = 0.1
    for layer in layers:
        classes = targets[0]["labels"].new_full(layer["pred_logits"].shape[:2], CLASSES)
        matched, masks = [], []
        for image, target in enumerate(targets):
            query, index = _match(
                layer["pred_logits"][image], layer["pred_masks"][image], target, points
            )
            classes[image, query] = target["labels"][index]
            matched.append(layer["pred_masks"][image, query])
            masks.append(target["masks"][index].float())
        logits, truth = (torch.cat(each)[:, None] for each in (matched, masks))
        with torch.no_grad():
            at = get_uncertain_point_coords_with_randomness(
                logits, lambda values: -values.abs(), points, 3.0, 0.75
            )
            truth = point_sample(truth, at, align_corners=False)[:, 0]
        logits = point_sample(logits, at, align_corners=False)[:, 0]
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        prob = logits.sigmoid()
        dice = dice_loss((prob * truth).sum(1), prob.sum(1), truth.sum(1))
        ce = F.cross_entropy(layer["pred_logits"].transpose(1, 2), classes, weight)
        total = total + WEIGHTS["loss_ce"] * ce + 5.0 * (entropy.sum() + dice.sum()) / count
    return total


@torch.no_grad()
def _match(classes: Tensor, logits: Tensor, target: dict, points: int) -> tuple[Tensor, Tensor]:
    """Match the queries of one image: (Q, classes + 1) and (Q, h, w) logits."""
    at = torch.rand(1, points, 2, device=logits.device)
    logits, masks = (
        point_sample(maps[None].float(), at, align_corners=False)[0]
        for maps in (logits, target["masks"])
    )
    inside, outside = F.softplus(-logits), F.softplus(logits)
    entropy = (inside @ masks.T + outside @ (1 - masks).T) / points
    cost = -2.0 * classes.softmax(-1)[:, target["labels"]] + 5.0 * entropy
    prob = logits.sigmoid()
    cost = cost + 5.0 * dice_loss(prob @ masks.T, prob.sum(1)[:, None], masks.sum(1))
    return tuple(map(torch.as_tensor, linear_sum_assignment(cost.cpu().numpy())))


def add_options(option) -> None:
    option("--images", default=2, help="images")
    option("--size", default=256, help="side of an image in pixels, a multiple of 4")
    option("--masks", default=20, help="masks of an image")
    option("--queries", default=100, help="queries, at least as many as masks")
    option("--layers", default=10, help="layers that predict")
    option("--points", default=12544, help="points of a pair")


def run(args: argparse.Namespace) -> Iterator[Row]:
    if args.queries < args.masks:
        raise ValueError(f"--queries {args.queries} is less than --masks {args.masks}")
    targets = [
        {
            "labels": torch.randint(CLASSES, (args.masks,), device=args.device),
            "masks": _smooth(args.masks, args.size, args.device) > 0,
        }
        for _ in range(args.images)
    ]
    cells, shape = args.size // 4, (args.layers, args.images, args.queries)
    masks = _smooth(args.layers * args.images * args.queries, cells, args.device)
    masks = (5 * masks).view(*shape, cells, cells).requires_grad_()
    classes = torch.randn(*shape, CLASSES + 1, device=args.device)
    matcher = PointMatcher(num_points=args.points)
    criterion = PointSetCriterion(
        num_classes=CLASSES, matcher=matcher, weight_dict=WEIGHTS, num_points=args.points
    ).to(args.device)

    def layers() -> list[dict]:
        return [{"pred_logits": a, "pred_masks": b} for a, b in zip(classes, masks)]

    def run_literal() -> Results:
        return torch.autograd.grad(literal_losses(layers(), targets, args.points), masks)

    def run_sgr() -> Results:
        output, *inner = layers()
        losses = criterion({**output, "aux_outputs": inner}, targets)
        return torch.autograd.grad(sum(criterion.weighted(losses).values()), masks)

    yield compare(
        f"{args.images} images of {args.size}x{args.size}, {args.masks} masks, "
        f"{args.queries} queries, {args.layers} layers",
        run_literal,
        run_sgr,
        args,
        deviation=lambda *_: 0.0,
    )


def _smooth(number: int, size: int, device: str) -> Tensor:
    """Random (number, size, size) maps without fine detail, about 0 on average."""
    coarse = torch.randn(number, 1, 4, 4, device=device)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)[:, 0]
