import math

import pytest
import torch
from torch.nn import functional as F

from queries import random_outputs, random_targets
from sgr.modeling.mask_classification import (
    HungarianMatcher,
    PointMatcher,
    PointSetCriterion,
    SetCriterion,
)

WEIGHTS = {"loss_ce": 2.0, "loss_mask": 20.0, "loss_dice": 5.0}


def _criterion(kind=SetCriterion, **options):
    if kind is PointSetCriterion:
        options.update(matcher=PointMatcher(num_points=24), num_points=24)
    return kind(
        **{"num_classes": 3, "matcher": HungarianMatcher(), "weight_dict": WEIGHTS, **options}
    )


kinds = pytest.mark.parametrize("kind", [SetCriterion, PointSetCriterion])


def _literal_losses(layer, matches, targets, no_object_weight):
    """The losses query by query and cell by cell."""
    ce = weight_sum = mask_sum = dice_sum = 0.0
    for b, (query, index) in enumerate(matches):
        target_of = dict(zip(query.tolist(), index.tolist()))
        for q in range(layer["pred_logits"].shape[1]):
            log_prob = layer["pred_logits"][b, q].log_softmax(0)
            weight = 1.0 if q in target_of else no_object_weight
            label = targets[b]["labels"][target_of[q]].item() if q in target_of else -1
            ce -= weight * log_prob[label].item()
            weight_sum += weight
            if q not in target_of:
                continue
            mask = targets[b]["masks"][target_of[q]].float()
            big = F.interpolate(
                layer["pred_masks"][b, q][None, None], mask.shape, mode="bilinear"
            ).flatten()
            prob, mask = big.sigmoid(), mask.flatten()
            cells = [
                -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
                for p, t in zip(prob.tolist(), mask.tolist())
            ]
            mask_sum += sum(cells) / len(cells)
            overlap = (prob * mask).sum()
            dice_sum += (1 - (2 * overlap + 1) / (prob.sum() + mask.sum() + 1)).item()
    count = max(sum(len(target["labels"]) for target in targets), 1)
    return {
        "loss_ce": ce / weight_sum,
        "loss_mask": mask_sum / count,
        "loss_dice": dice_sum / count,
    }


@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (0, 0), (7, 1)])
def test_against_the_literal_losses(counts):
    outputs, targets = random_outputs(), random_targets(*counts)
    criterion = _criterion(no_object_weight=0.3)
    losses = criterion(outputs, targets)
    layers = {"": outputs, "_0": outputs["aux_outputs"][0]}
    matches = criterion.matcher(list(layers.values()), targets)
    assert len(losses) == 6
    with torch.no_grad():
        for (suffix, layer), match in zip(layers.items(), matches):
            for name, value in _literal_losses(layer, match, targets, 0.3).items():
                assert losses[name + suffix].item() == pytest.approx(value, abs=1e-5), name


@kinds
def test_losses_far_out_are_finite(kind):
    logits = torch.tensor([[[-1e4, 1e4, 0.0]]], requires_grad=True)
    masks = torch.tensor([[[True, False, True]]])
    [losses] = _criterion(kind)._mask_losses([logits], [masks], [torch.tensor([0])], [1])
    loss = sum(losses)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@kinds
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
def test_every_prediction_is_in_the_graph(kind, counts):
    """Also without any mask: distributed training waits for every parameter's gradient."""
    outputs = random_outputs()
    sum(_criterion(kind)(outputs, random_targets(*counts)).values()).backward()
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["pred_logits"].grad.abs().sum() > 0
        assert layer["pred_masks"].grad is not None
        assert (layer["pred_masks"].grad.abs().sum() > 0) == (sum(counts) > 0)


@kinds
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_masks_by_their_factors(kind, counts):
    """The losses are the same, and the gradients reach the factors of the matched masks alone."""
    embeddings, features = torch.randn(2, 2, 4, 8), torch.randn(2, 8, 6, 6)
    classes, targets = torch.randn(2, 2, 4, 4), random_targets(*counts)
    results = []
    for with_factors in (False, True):
        factors = embeddings.clone().requires_grad_(), features.clone().requires_grad_()
        masks = torch.einsum("lbqc,bchw->lbqhw", *factors)
        layers = [dict(zip(("pred_logits", "pred_masks"), each)) for each in zip(classes, masks)]
        outputs = {**layers[0], "aux_outputs": layers[1:]}
        if with_factors:
            outputs["mask_features"] = factors[1]
            for layer, of_layer in zip((outputs, *layers[1:]), factors[0]):
                layer["mask_embeddings"] = of_layer
                layer["pred_masks"] = layer["pred_masks"].detach()
        torch.manual_seed(0)
        losses = _criterion(kind)(outputs, targets)
        sum(losses.values()).backward()
        results.append((losses, [factor.grad for factor in factors]))
    torch.testing.assert_close(*results)


def test_masks_are_counted_over_the_workers(monkeypatch):
    """Two workers, this one with 2 masks, the other with 6: divided by 4."""
    outputs, targets = random_outputs(aux=0), random_targets(1, 1)
    alone = _criterion()(outputs, targets)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(6))
    together = _criterion()(outputs, targets)
    assert together["loss_dice"].item() == pytest.approx(alone["loss_dice"].item() / 2)
    assert together["loss_ce"].item() == pytest.approx(alone["loss_ce"].item())


def test_weights_are_those_of_the_main_loss():
    losses = dict.fromkeys(["loss_ce", "loss_mask_0", "loss_dice_11"], torch.ones(()))
    weighted = {name: value.item() for name, value in _criterion().weighted(losses).items()}
    assert weighted == {"loss_ce": 2.0, "loss_mask_0": 20.0, "loss_dice_11": 5.0}


@kinds
def test_float32_under_autocast(kind):
    outputs, targets = random_outputs(aux=0), random_targets(2, 1)
    half = {key: outputs[key].bfloat16() for key in ("pred_logits", "pred_masks")}
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = _criterion(kind)(half, targets)
    torch.manual_seed(3)
    exact = _criterion(kind)({key: value.float() for key, value in half.items()}, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), abs=1e-6)


def test_in_a_model_of_half_precision():
    outputs, targets = random_outputs(), random_targets(2, 1)
    expected = _criterion()(outputs, targets)["loss_ce"]
    torch.testing.assert_close(
        _criterion().half()(outputs, targets)["loss_ce"], expected, atol=1e-3, rtol=1e-3
    )


def test_reference(reference, reference_outputs, reference_targets):
    criterion = SetCriterion(
        num_classes=7,
        matcher=HungarianMatcher(class_weight=1, mask_weight=20, dice_weight=1),
        weight_dict=WEIGHTS,
        no_object_weight=0.1,
    )
    losses = criterion(reference_outputs, reference_targets)
    expected = {
        name.removeprefix("loss."): value.item()
        for name, value in reference.items()
        if name.startswith("loss.")
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-5)
