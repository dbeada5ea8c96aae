import math
from itertools import permutations

import numpy as np
import pytest
import torch
from detectron2.projects.point_rend.point_features import point_sample

from queries import random_layer, random_targets
from sgr.modeling.mask_classification import PointMatcher
from sgr.modeling.mask_classification.criteria.point_matcher import pairwise_cross_entropy_cost

POINTS = 30


def _cross_entropy(logits, target):
    """Mean cross entropy, point by point."""
    total = 0.0
    for x, t in zip(logits.tolist(), target.tolist()):
        p = 1 / (1 + math.exp(-x))
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total / len(logits)


def _dice(logits, target):
    prob = logits.sigmoid()
    return (1 - (2 * (prob * target).sum() + 1) / (prob.sum() + target.sum() + 1)).item()


def test_pairwise_cost_against_every_pair():
    logits, targets = 3 * torch.randn(2, 3, 20), torch.rand(2, 4, 20)
    cost = pairwise_cross_entropy_cost(logits, targets)
    assert cost.shape == (2, 3, 4)
    for b in range(2):
        for q in range(3):
            for t in range(4):
                expected = _cross_entropy(logits[b, q], targets[b, t])
                assert cost[b, q, t].item() == pytest.approx(expected, abs=1e-5)


def test_cost_stays_finite_far_out():
    cost = pairwise_cross_entropy_cost(torch.tensor([[-1e4, 1e4]]), torch.tensor([[1.0, 0.0]]))
    assert cost.item() == pytest.approx(1e4)


@pytest.mark.parametrize("counts", [(3, 2), (1, 4), (0, 2), (6, 1)])
def test_matching_is_the_best_of_all(monkeypatch, counts):
    """Every assignment is tried, on the same points for all layers, predictions and targets."""
    layers = [random_layer() for _ in range(3)]
    targets, points = random_targets(*counts), torch.rand(2, POINTS, 2)
    drawn = iter(points)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: next(drawn))
    matcher = PointMatcher(num_points=POINTS, class_weight=1.5, mask_weight=7.0, dice_weight=2.0)
    for layer, matches in zip(layers, matcher(layers, targets), strict=True):
        for b, (target, (query, index)) in enumerate(zip(targets, matches, strict=True)):
            count = len(target["labels"])
            prob = layer["pred_logits"][b].softmax(-1)
            at = points[b : b + 1]
            logits = point_sample(layer["pred_masks"][b : b + 1], at, align_corners=False)[0]
            cost = torch.zeros(4, count)
            for t in range(count):
                mask = target["masks"][t][None, None].float()
                mask = point_sample(mask, at, align_corners=False)[0, 0]
                for q in range(4):
                    cost[q, t] = (
                        -1.5 * prob[q, target["labels"][t]]
                        + 7 * _cross_entropy(logits[q], mask)
                        + 2 * _dice(logits[q], mask)
                    )
            if count <= 4:
                tries = [cost[list(p), range(count)].sum() for p in permutations(range(4), count)]
            else:
                tries = [cost[range(4), list(p)].sum() for p in permutations(range(count), 4)]
            assert len(query) == len(index) == min(4, count)
            assert len(set(query)) == len(query) and len(set(index)) == len(index)
            assert cost[query, index].sum().item() == pytest.approx(min(tries).item(), abs=1e-4)


def test_no_mask_in_the_whole_batch():
    layers = [random_layer(), random_layer()]
    matches = PointMatcher(num_points=POINTS)(layers, random_targets(0, 0))
    assert [[len(q) for q, _ in layer] for layer in matches] == [[0, 0], [0, 0]]


def test_one_copy_for_all_layers(monkeypatch):
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t.shape) or to_host(t))
    PointMatcher(num_points=POINTS)([random_layer() for _ in range(5)], random_targets(3, 2))
    assert copies == [(5, 4, 5)]


def test_half_precision_under_autocast():
    half = {key: value.bfloat16() for key, value in random_layer().items()}
    exact = {key: value.float() for key, value in half.items()}
    targets = random_targets(3, 2)
    matcher = PointMatcher(num_points=POINTS)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        matches = matcher([half], targets)
    torch.manual_seed(3)
    for a, b in zip(matches[0], matcher([exact], targets)[0]):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_needs_points_and_a_weight():
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS.*got 0"):
        PointMatcher(num_points=0)
    with pytest.raises(ValueError, match="matching cost"):
        PointMatcher(class_weight=0, mask_weight=0, dice_weight=0)


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch):
    layer, targets, points = random_layer(), random_targets(3, 2), torch.rand(2, POINTS, 2)
    drawn = iter((*points, *points))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: next(drawn).to(device))
    matcher = PointMatcher(num_points=POINTS)
    on_gpu = [{key: value.cuda() for key, value in each.items()} for each in (layer, *targets)]
    ours = matcher(on_gpu[:1], on_gpu[1:])[0]
    for (query, index), (q, i) in zip(ours, matcher([layer], targets)[0], strict=True):
        assert query.tolist() == q.tolist() and index.tolist() == i.tolist()
