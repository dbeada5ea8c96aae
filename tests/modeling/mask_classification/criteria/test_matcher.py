from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from queries import random_layer, random_targets
from sgr.modeling.mask_classification import HungarianMatcher
from sgr.modeling.mask_classification.criteria.matcher import (
    pairwise_dice_cost,
    pairwise_focal_cost,
)


def _focal(logits, target, alpha=0.25, gamma=2.0):
    """Mean focal loss of one mask, cell by cell."""
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), target.flatten().tolist()):
        p = 1 / (1 + np.exp(-x))
        p, weight = (p, alpha) if t else (1 - p, 1 - alpha)
        total -= weight * (1 - p) ** gamma * np.log(p)
    return total / logits.numel()


def _dice(logits, target):
    prob = logits.sigmoid()
    return 1 - (2 * (prob * target).sum() + 1) / (prob.sum() + target.sum() + 1)


def test_pairwise_costs_against_every_pair():
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(2, 3, 20), (torch.rand(2, 4, 20) > 0.5).float()
    focal, dice = pairwise_focal_cost(logits, targets), pairwise_dice_cost(logits, targets)
    assert focal.shape == dice.shape == (2, 3, 4)
    for b in range(2):
        for q in range(3):
            for t in range(4):
                pair = logits[b, q], targets[b, t]
                assert focal[b, q, t].item() == pytest.approx(_focal(*pair), abs=1e-5)
                assert dice[b, q, t].item() == pytest.approx(_dice(*pair).item(), abs=1e-5)


def test_costs_stay_finite_far_out():
    logits, targets = torch.tensor([[-1e4, 1e4]]), torch.tensor([[1.0, 0.0]])
    assert pairwise_focal_cost(logits, targets).item() == pytest.approx(0.5e4)
    assert pairwise_dice_cost(logits, targets).isfinite().all()


@pytest.mark.parametrize("counts", [(3, 2), (1, 4), (0, 2), (6, 1)])
def test_matching_is_the_best_of_all(counts):
    """Every assignment is tried; with more masks than queries, masks stay without one."""
    weights = {"class_weight": 1.5, "mask_weight": 7.0, "dice_weight": 2.0}
    layers = [random_layer() for _ in range(3)]
    targets = random_targets(*counts)
    for layer, matches in zip(layers, HungarianMatcher(**weights)(layers, targets)):
        for b, (target, (query, index)) in enumerate(zip(targets, matches)):
            count = len(target["labels"])
            prob = layer["pred_logits"][b].softmax(-1)
            small = [F.interpolate(m[None, None].float(), (6, 8))[0, 0] for m in target["masks"]]
            cost = torch.zeros(4, count)
            for q in range(4):
                for t in range(count):
                    mask = layer["pred_masks"][b, q]
                    cost[q, t] = (
                        -1.5 * prob[q, target["labels"][t]]
                        + 7 * _focal(mask, small[t])
                        + 2 * _dice(mask, small[t])
                    )
            if count <= 4:
                tries = [cost[list(p), range(count)].sum() for p in permutations(range(4), count)]
            else:
                tries = [cost[range(4), list(p)].sum() for p in permutations(range(count), 4)]
            assert len(query) == len(index) == min(4, count)
            assert len(set(query)) == len(query) and len(set(index)) == len(index)
            assert cost[query, index].sum().item() == pytest.approx(min(tries).item(), abs=1e-4)


def test_no_mask_in_the_whole_batch():
    matches = HungarianMatcher()([random_layer(), random_layer()], random_targets(0, 0))
    assert [[len(q) for q, _ in layer] for layer in matches] == [[0, 0], [0, 0]]


def test_diverged_predictions_are_matched_all_the_same():
    prediction = random_layer()
    prediction["pred_masks"][0, 0] = float("nan")
    prediction["pred_masks"][1] = float("inf")
    matches = HungarianMatcher()([prediction], random_targets(2, 2))[0]
    assert [len(query) for query, _ in matches] == [2, 2]


def test_one_copy_for_all_layers(monkeypatch):
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t.shape) or to_host(t))
    HungarianMatcher()([random_layer() for _ in range(5)], random_targets(3, 2))
    assert copies == [(5, 4, 5)]


def test_half_precision_under_autocast():
    prediction = random_layer()
    half = {key: value.bfloat16() for key, value in prediction.items()}
    exact = {key: value.float() for key, value in half.items()}
    targets = random_targets(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        matches = HungarianMatcher()([half], targets)
    for a, b in zip(matches[0], HungarianMatcher()([exact], targets)[0]):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_all_weights_zero():
    with pytest.raises(ValueError, match="matching cost"):
        HungarianMatcher(class_weight=0, mask_weight=0, dice_weight=0)


def test_reference(reference, reference_outputs, reference_targets):
    matches = HungarianMatcher(class_weight=1, mask_weight=20, dice_weight=1)(
        [reference_outputs], reference_targets
    )[0]
    for image, (query, target) in enumerate(matches):
        assert query.tolist() == reference[f"match{image}.query"].tolist()
        assert target.tolist() == reference[f"match{image}.target"].tolist()
