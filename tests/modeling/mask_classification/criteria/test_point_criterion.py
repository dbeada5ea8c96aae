import math

import pytest
import torch
from detectron2.projects.point_rend.point_features import point_sample

from queries import random_outputs, random_targets
from sgr.modeling.mask_classification import PointMatcher, PointSetCriterion
from sgr.modeling.mask_classification.criteria import point_criterion

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

    def record(*args):
        result = function(*args)
        calls.append((args, result))
        return result

    monkeypatch.setattr(owner, name, record)
    return calls


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
    drawn = _recorded(monkeypatch, point_criterion, "get_uncertain_point_coords_with_randomness")
    losses = criterion(outputs, targets)
    layers = {"": outputs, "_0": outputs["aux_outputs"][0]}
    assert len(losses) == 6
    assert len(drawn) == (2 if any(counts) else 0)
    points = [result for _, result in drawn] or [[], []]
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
    """Of 40 points, 30 are the most uncertain of 120; the other ten are drawn apart from them."""
    rand, drawn = torch.rand, []

    def record(*shape, **options):
        drawn.append(rand(*shape, **options))
        return drawn[-1]

    chosen = _recorded(monkeypatch, point_criterion, "get_uncertain_point_coords_with_randomness")
    monkeypatch.setattr(torch, "rand", record)
    logits, masks = 5 * torch.randn(2, 6, 8), torch.ones(2, 12, 16) > 0
    criterion = _criterion(num_points=40, oversample_ratio=3.0, importance_sample_ratio=0.75)
    criterion._mask_losses(logits, masks, torch.tensor([1, 0]))
    candidates, rest = drawn
    points = chosen[0][1]
    assert candidates.shape == (2, 120, 2) and points.shape == (2, 40, 2)
    assert torch.equal(points[:, 30:], rest)
    values = point_sample(logits[:, None], candidates, align_corners=False)[:, 0].abs()
    for row in range(2):
        closest = candidates[row, values[row].argsort()[:30]]
        assert {tuple(p) for p in closest.tolist()} == {tuple(p) for p in points[row, :30].tolist()}


@pytest.mark.parametrize("importance, uncertain", [(0.0, 0), (1.0, POINTS)])
def test_all_points_random_or_all_uncertain(monkeypatch, importance, uncertain):
    shapes, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *s, **o: shapes.append(s) or rand(*s, **o))
    criterion = _criterion(oversample_ratio=1.0, importance_sample_ratio=importance)
    logits, masks = torch.randn(1, 4, 4), torch.ones(1, 8, 8) > 0
    assert sum(criterion._mask_losses(logits, masks, torch.tensor([0]))).isfinite()
    assert shapes == [(1, POINTS, 2)] + ([(1, POINTS - uncertain, 2)] if uncertain < POINTS else [])


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
