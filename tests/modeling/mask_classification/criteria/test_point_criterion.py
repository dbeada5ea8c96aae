import math

import pytest
import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from torch.nn import functional as F

from queries import random_outputs, random_targets
from sgr.modeling.mask_classification import PointMatcher, PointSetCriterion

WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
POINTS = 24


def _criterion(**options):
    return PointSetCriterion(
        **{
            "num_classes": 3,
            "matcher": PointMatcher(num_points=POINTS),
            "weight_dict": WEIGHTS,
            "num_points": POINTS,
            **options,
        }
    )


def _recorded(monkeypatch, owner, name):
    """Every (arguments, result) of a function or method from now on."""
    calls, function = [], getattr(owner, name)

    def record(*args, **options):
        result = function(*args, **options)
        calls.append((args, result))
        return result

    monkeypatch.setattr(owner, name, record)
    return calls


def _points(calls):
    """The (N, P, 2) points of recorded calls of ``grid_sample``."""
    return [(grid[:, :, 0] + 1) / 2 for (_, grid), _ in calls]


def _literal_mask_losses(layer, matches, targets, points):
    """Cross entropy and dice pair by pair and point by point, summed over the pairs."""
    mask_sum = dice_sum = 0.0
    pairs = [(b, q, t) for b, match in enumerate(matches) for q, t in zip(*match)]
    for (b, q, t), at in zip(pairs, points, strict=True):
        logits = point_sample(layer["pred_masks"][b, q][None, None], at[None], align_corners=False)
        mask = targets[b]["masks"][t][None, None].float()
        mask = point_sample(mask, at[None], align_corners=False)
        cross_entropy = overlap = mass = area = 0.0
        for x, value in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            cross_entropy -= value * math.log(p) + (1 - value) * math.log(1 - p)
            overlap, mass, area = overlap + p * value, mass + p, area + value
        mask_sum += cross_entropy / len(at)
        dice_sum += 1 - (2 * overlap + 1) / (mass + area + 1)
    return mask_sum, dice_sum


def _literal_class_loss(layer, matches, targets, no_object_weight):
    total = weights = 0.0
    for b, (queries, indices) in enumerate(matches):
        label = dict(zip(queries.tolist(), targets[b]["labels"][indices].tolist()))
        for q, log_prob in enumerate(layer["pred_logits"][b].log_softmax(-1)):
            weight = 1.0 if q in label else no_object_weight
            total -= weight * log_prob[label.get(q, -1)].item()
            weights += weight
    return total / weights


@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (0, 0), (7, 1)])
def test_against_the_literal_losses(monkeypatch, counts):
    outputs, targets = random_outputs(), random_targets(*counts)
    criterion = _criterion(no_object_weight=0.3)
    matched = _recorded(monkeypatch, criterion.matcher, "forward")
    with monkeypatch.context() as only_now:
        points = _recorded(only_now, F, "grid_sample")
        losses = criterion(outputs, targets)
    points = _points(points)
    layers = {"": outputs, "_0": outputs["aux_outputs"][0]}
    assert len(losses) == 6
    assert len(points) == (2 if any(counts) else 0)
    points = points or [[], []]
    with torch.no_grad():
        for (suffix, layer), matches, at in zip(layers.items(), matched[0][1], points, strict=True):
            assert all(each.shape == (POINTS, 2) for each in at)
            mask, dice = _literal_mask_losses(layer, matches, targets, at)
            ce = _literal_class_loss(layer, matches, targets, 0.3)
            count = max(sum(counts), 1)
            assert losses[f"loss_ce{suffix}"].item() == pytest.approx(ce, abs=1e-5)
            assert losses[f"loss_mask{suffix}"].item() == pytest.approx(mask / count, abs=1e-5)
            assert losses[f"loss_dice{suffix}"].item() == pytest.approx(dice / count, abs=1e-5)


def test_points_lie_where_the_prediction_wavers(monkeypatch):
    """Of 40 points, 30 are the most uncertain of 120; the other ten are the same for all pairs."""
    drawn = _recorded(monkeypatch, torch, "rand")
    chosen = _recorded(monkeypatch, F, "grid_sample")
    layers, masks = [5 * torch.randn(3, 6, 8) for _ in range(2)], torch.ones(3, 12, 16) > 0
    criterion = _criterion(num_points=40, oversample_ratio=3.0, importance_sample_ratio=0.75)
    index = torch.tensor([1, 0, 2])
    list(criterion.read_pairs(layers, masks.split([2, 1]), [index, index], [2, 1]))
    [(_, drawn)], chosen = drawn, _points(chosen)
    assert drawn.shape == (2, 130, 2)
    for logits, points in zip(layers, chosen, strict=True):
        assert points.shape == (3, 40, 2)
        for pair, image in enumerate([0, 0, 1]):
            candidates, rest = drawn[image, :120], drawn[image, 120:]
            torch.testing.assert_close(points[pair, 30:], rest)
            values = point_sample(
                logits[None, pair : pair + 1], candidates[None], align_corners=False
            )[0, 0].abs()
            closest = candidates[values.argsort()[:30]]
            ours = points[pair, :30]
            torch.testing.assert_close(ours[ours[:, 0].argsort()], closest[closest[:, 0].argsort()])


def test_expected_losses_are_those_of_points_of_each_pair():
    """Points that all pairs of an image share change the noise of the losses, not their mean."""
    logits, masks = 3 * torch.randn(4, 5, 6), torch.rand(4, 10, 12) > 0.5
    criterion, index = _criterion(num_points=8), torch.arange(4)
    ours, theirs = [], []
    for _ in range(300):
        [losses] = criterion._mask_losses([logits], [masks], [index], [4])
        ours.append(torch.stack(losses))
        points = get_uncertain_point_coords_with_randomness(
            logits[:, None], lambda values: -values.abs(), 8, 3.0, 0.75
        )
        values, truth = (
            point_sample(maps[:, None], points, align_corners=False)[:, 0]
            for maps in (logits, masks.float())
        )
        prob = values.sigmoid()
        dice = 1 - (2 * (prob * truth).sum(1) + 1) / (prob.sum(1) + truth.sum(1) + 1)
        cross_entropy = F.binary_cross_entropy_with_logits(values, truth, reduction="none")
        theirs.append(torch.stack((cross_entropy.mean(1).sum(), dice.sum())))
    ours, theirs = torch.stack(ours), torch.stack(theirs)
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("importance, uncertain", [(0.0, 0), (1.0, POINTS)])
def test_all_points_random_or_all_uncertain(monkeypatch, importance, uncertain):
    drawn = _recorded(monkeypatch, torch, "rand")
    criterion = _criterion(oversample_ratio=1.0, importance_sample_ratio=importance)
    logits, masks = torch.randn(1, 4, 4), torch.ones(1, 8, 8) > 0
    [losses] = criterion._mask_losses([logits], [masks], [torch.tensor([0])], [1])
    assert sum(losses).isfinite()
    assert [points.shape for _, points in drawn] == [(1, 2 * POINTS - uncertain, 2)]


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_points", 0),
        ("oversample_ratio", 0.5),
        ("importance_sample_ratio", -0.1),
        ("importance_sample_ratio", 1.1),
    ],
)
def test_options_out_of_range(key, value):
    with pytest.raises(ValueError, match=f"MODEL.MASK_FORMER.*{key.upper()[-10:]}.*got {value}"):
        _criterion(**{key: value})
