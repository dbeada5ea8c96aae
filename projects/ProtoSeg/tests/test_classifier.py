import math

import pytest
import torch
from torch.nn import functional as F

import sgr
from protoseg import PrototypeClassifier, add_protoseg_config, classifier
from sgr.engine import load_config

K, M, D = 3, 2, 6


def build(**options):
    return PrototypeClassifier(
        **{"in_channels": D, "num_outputs": K, "num_prototypes": M, "momentum": 0.9, **options}
    )


@pytest.fixture
def features():
    return torch.randn(2, D, 4, 5)


@pytest.fixture
def labels():
    labels = torch.randint(K, (2, 4, 5))
    labels[0, 0] = 255
    return labels


# The public module.


@pytest.fixture
def public(reference):
    """The classifier with the public weights, and what its 3x3 convolution gave it."""
    config = reference.config
    model = build(
        in_channels=config["channels"],
        num_outputs=config["num_classes"],
        num_prototypes=config["num_prototypes"],
        momentum=config["gamma"],
        epsilon=config["epsilon"],
        iterations=config["sinkhorn_iterations"],
        projection_norm="width",
    )
    state = {name: value for name, value in reference.state.items() if "mlp2" not in name}
    model.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("cls_head")}
    )
    inputs = [reference.input[f"feature_{level}"] for level in range(4)]
    size = inputs[0].shape[-2:]
    together = torch.cat(
        [F.interpolate(each, size, mode="bilinear", align_corners=True) for each in inputs], dim=1
    )
    convolution = F.conv2d(
        together, state["cls_head.0.weight"], state["cls_head.0.bias"], padding=1
    )
    norm = (
        state[f"cls_head.1.0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return model, F.batch_norm(convolution, *norm).relu()


def public_labels(reference):
    """The public code takes the pixel at the corner of each cell."""
    return reference.input["labels"].long()[:, ::4, ::4]


def test_scores_are_the_public_ones(public, reference, assert_near):
    model, features = public
    with torch.no_grad():
        prediction = model.eval()(features)
    assert_near(prediction.logits, reference.output["scores"])
    cosines = reference.output["similarities"].movedim(2, 1)  # (N, K, M)
    classes = prediction.logits.argmax(1).flatten()
    nearest = cosines[torch.arange(len(cosines)), classes].argmax(1)
    assert torch.equal(prediction.prototypes.flatten(), classes * M * 2 + nearest)
    assert_near(model.prototypes, reference.state["prototypes"])


@pytest.mark.parametrize("at_once", [2**24, 84 * 4, 84 * 4 * 2])
def test_losses_and_prototypes_are_the_public_ones(
    public, reference, assert_near, monkeypatch, at_once
):
    """All cosines at once, those of one class, and of two."""
    monkeypatch.setattr(classifier, "MAX_COSINES", at_once)
    model, features = public
    prediction = model(features, public_labels(reference))
    assert_near(prediction.logits, reference.output["seg"])
    config, losses = reference.config, prediction.losses
    contrast = losses["loss_prototype_contrast"] / config["ppc_weight"]
    distance = losses["loss_prototype_distance"] / config["ppd_weight"]
    assert_near(contrast, reference.output["loss_ppc"])
    assert_near(distance, reference.output["loss_ppd"])
    assert_near(model.prototypes, reference.output["prototypes_after_argmax"])


def test_total_loss_is_the_public_one(public, reference, assert_near):
    model, features = public
    labels = reference.input["labels"].long()
    prediction = model(features, public_labels(reference))
    logits = F.interpolate(prediction.logits, labels.shape[1:], mode="bilinear", align_corners=True)
    loss = F.cross_entropy(logits, labels, ignore_index=reference.config["ignore"])
    assert_near(loss, reference.output["loss_seg"])
    assert_near(loss + sum(prediction.losses.values()), reference.output["loss_total"])


def test_noise_moves_other_prototypes_as_the_public_code(
    public, reference, assert_near, monkeypatch
):
    model, features = public
    model.assignment = "gumbel"
    labels = public_labels(reference)
    noise = torch.zeros(*labels.flatten(1).shape, 4)
    for index in range(4):
        noise[labels.flatten(1) == index] = reference.input[f"noise_{index}"]
    monkeypatch.setattr(classifier, "gumbel_noise", lambda like: noise)
    prediction = model(features, labels)
    assert_near(model.prototypes, reference.output["prototypes_after"])
    contrast = prediction.losses["loss_prototype_contrast"] / reference.config["ppc_weight"]
    assert_near(contrast, reference.output["loss_ppc"])


# By hand, and properties.


def test_noise_has_the_standard_gumbel_distribution():
    """P(x <= t) = exp(-exp(-t))."""
    noise = classifier.gumbel_noise(torch.empty(100_000))
    for t in (-1.0, 0.0, 1.0, 3.0):
        share = (noise <= t).float().mean().item()
        assert share == pytest.approx(math.exp(-math.exp(-t)), abs=0.01)


def test_losses_and_moves_by_hand(features, labels):
    """Loops over cells, with everything that they need written out."""
    model = build(temperature=0.2, contrast_weight=1.0, distance_weight=1.0)
    start = model.prototypes.clone()
    with torch.no_grad():
        embedded = F.normalize(model.feat_norm(model.proj_head(features).movedim(1, 3)), dim=3)
        cells = embedded[labels < K]
        classes = labels[labels < K].tolist()
        cosines = torch.einsum("nd,kmd->nkm", cells, start)
        scores = model.mask_norm(cosines.amax(2))
        target = [None] * len(cells)
        for index in range(K):
            own = [n for n, each in enumerate(classes) if each == index]
            shares = classifier.equal_shares(
                cosines[own, index] / 0.05, torch.zeros(len(own), dtype=torch.long), 1
            )
            for n, best in zip(own, shares.argmax(1).tolist()):
                target[n] = best
        contrast = distance = 0.0
        sums = torch.zeros(K, M, D)
        for n, (index, best) in enumerate(zip(classes, target)):
            contrast -= (cosines[n].flatten() / 0.2).log_softmax(0)[index * M + best]
            distance += (1 - cosines[n, index, best]) ** 2
            if scores[n].argmax() == index:
                sums[index, best] += cells[n]
        expected = start.clone()
        for index, best in [(k, m) for k in range(K) for m in range(M) if sums[k, m].any()]:
            mean = sums[index, best] / sums[index, best].norm()
            expected[index, best] = 0.9 * start[index, best] + 0.1 * mean
            expected[index, best] /= expected[index, best].norm()
    losses = model(features, labels).losses
    torch.testing.assert_close(losses["loss_prototype_contrast"], contrast / len(cells))
    torch.testing.assert_close(losses["loss_prototype_distance"], distance / len(cells))
    torch.testing.assert_close(model.prototypes, expected)
    assert not torch.equal(expected, start)


def test_one_prototype_is_a_running_mean(features):
    """M = 1: the assignment is trivial, and losses of the contrast are cross entropies."""
    model = build(num_prototypes=1, momentum=0.0, temperature=1.0, contrast_weight=1.0)
    with torch.no_grad():
        embedded = F.normalize(model.feat_norm(model.proj_head(features).movedim(1, 3)), dim=3)
        labels = model.eval()(features).logits.argmax(1)  # all are right
        cosines = embedded @ model.prototypes[:, 0].T
    losses = model.train()(features, labels).losses
    for index in labels.unique():
        mean = embedded[labels == index].mean(0)
        torch.testing.assert_close(model.prototypes[index, 0], mean / mean.norm())
    expected = F.cross_entropy(cosines.flatten(0, 2), labels.flatten())
    torch.testing.assert_close(losses["loss_prototype_contrast"], expected)


@pytest.mark.parametrize("norm", ["", "width"])
def test_parts_of_the_cosines_change_nothing(norm, features, labels, monkeypatch):
    """Neither results, nor gradients, nor moves: all at once, or one class at a time."""
    results = []
    for at_once in (2**24, 1):
        monkeypatch.setattr(classifier, "MAX_COSINES", at_once)
        torch.manual_seed(1)
        model = build(projection_norm=norm)
        x = features.clone().requires_grad_()
        prediction = model(x, labels)
        loss = F.cross_entropy(prediction.logits, labels, ignore_index=255)
        (loss + sum(prediction.losses.values())).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.eval()
        results.append([x.grad, *gradients, model.prototypes, model(features).logits])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def test_each_level_of_a_tree_learns_by_itself(features, labels):
    """Classes 0 to 2 and nodes 3 and 4: as two classifiers on the same features."""
    tree = build(num_outputs=5)
    tree.levels = (3, 2)
    nodes = torch.tensor([[0, 1, 2], [3, 4, 4]])
    levels = nodes[:, labels.where(labels < K, 0)].where(labels < K, -1)
    expected, moved = {}, []
    for first, size, own in ((0, 3, levels[0]), (3, 2, levels[1])):
        single = build(num_outputs=size)
        single.proj_head.load_state_dict(tree.proj_head.state_dict())
        single.prototypes = tree.prototypes[first : first + size].clone()
        for name, loss in single(features, own - first).losses.items():
            expected[name] = expected.get(name, 0) + loss
        moved.append(single.prototypes)
    prediction = tree(features, levels)
    for name, loss in prediction.losses.items():
        torch.testing.assert_close(loss, expected[name])
    torch.testing.assert_close(tree.prototypes, torch.cat(moved))
    assert prediction.logits.shape == (2, 5, 4, 5)
    regions = tree.concept_regions(prediction).probabilities
    assert regions.shape == (2, 3 * M, 4, 5) and regions.sum(1).eq(1).all()


def test_evaluation_leaves_the_state(features):
    model = build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert not model(features).losses
    assert all(value.equal(model.state_dict()[name]) for name, value in before.items())
    assert "prototypes" in before


def test_prototypes_of_another_length_are_scaled(features):
    model = build().eval()
    with torch.no_grad():
        expected = model(features).logits
        model.prototypes *= 3
        torch.testing.assert_close(model(features).logits, expected)


def test_regions_are_the_cells_of_the_prototypes(features):
    """Hard: each cell belongs to one prototype, of the class that is predicted there."""
    model = build(stride=8).eval()
    with sgr.record_concepts(model) as record, torch.no_grad():
        prediction = model(features)
    (regions,) = record.values()
    assert regions.stride == 8
    probabilities = regions.probabilities
    assert probabilities.shape == (2, K * M, 4, 5)
    assert set(probabilities.unique().tolist()) == {0.0, 1.0}
    assert probabilities.sum(1).eq(1).all()
    classes = probabilities.unflatten(1, (K, M)).sum(2).argmax(1)
    assert torch.equal(classes, prediction.logits.argmax(1))
    assert not record.learning


# Bad inputs.


def test_everything_ignored(features):
    model = build()
    before = model.prototypes.clone()
    features.requires_grad_()
    losses = model(features, torch.full((2, 4, 5), 255)).losses
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert not features.grad.any()
    torch.testing.assert_close(model.prototypes, before)


def test_absent_classes_keep_their_prototypes(features):
    model = build(momentum=0.0)
    before = model.prototypes.clone()
    with torch.no_grad():
        labels = model.eval()(features).logits.argmax(1)
    model.train()(features, labels.where(labels == 1, 255))
    torch.testing.assert_close(model.prototypes[[0, 2]], before[[0, 2]])
    assert not model.prototypes[1].allclose(before[1])


def test_fewer_cells_than_prototypes(features):
    """Two cells and seven prototypes: at most two move, no number is lost."""
    model = build(num_prototypes=7, momentum=0.5)
    before = model.prototypes.clone()
    with torch.no_grad():
        labels = model.eval()(features).logits.argmax(1)
    few = torch.full_like(labels, 255)
    few[0, 0, :2] = labels[0, 0, :2]
    losses = model.train()(features, few).losses
    assert all(loss.isfinite() for loss in losses.values())
    assert 1 <= (model.prototypes - before).abs().amax(2).gt(1e-4).sum() <= 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_state_takes_no_features_that_are_not_finite(value, features, labels):
    """The loss shows them. The next step moves the prototypes as if nothing had been."""
    model = build()
    model(features, labels)
    before = model.prototypes.clone()
    broken = features.clone()
    broken[1, 0, 2, 2] = value
    labels[1, 2, 2] = 1
    losses = model(broken, labels).losses
    assert not sum(losses.values()).isfinite()
    torch.testing.assert_close(model.prototypes, before)
    model(features, labels)
    assert model.prototypes.isfinite().all() and not torch.equal(model.prototypes, before)


def test_ignored_cells_may_hold_anything(features, labels):
    model, other = build(), build()
    other.load_state_dict(model.state_dict())
    broken = features.clone()
    broken[0, :, 0] = torch.nan
    losses, expected = other(broken, labels).losses, model(features, labels).losses
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    torch.testing.assert_close(other.prototypes, model.prototypes)


def test_autocast_computes_cosines_in_float32(features, labels):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(features, labels)
    assert prediction.logits.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in prediction.losses.values())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("NUM_PROTOTYPES", "0", "at least 1, got 0"),
        ("SINKHORN_ITERATIONS", "0", "at least 1, got 0"),
        ("MOMENTUM", "1.0", "is 1.0; it must be at least 0 and below 1"),
        ("MOMENTUM", "-0.1", "below 1"),
        ("SINKHORN_EPSILON", "0.0", "is 0.0; it must be above 0"),
        ("TEMPERATURE", "0.0", "above 0"),
        ("CONTRAST_WEIGHT", "-1.0", "at least 0"),
        ("DISTANCE_WEIGHT", "-1.0", "at least 0"),
        ("ASSIGNMENT", "best", "is 'best'; it must be 'argmax' or 'gumbel'"),
        ("PROJECTION_NORM", "height", "'height'; known: '', 'width'"),
    ],
)
def test_bad_options(key, value, expected):
    cfg = load_config("", [f"MODEL.PROTOSEG.{key}", value], add_configs=[add_protoseg_config])
    with pytest.raises(ValueError, match=f"MODEL.PROTOSEG.{key}.*{expected}"):
        PrototypeClassifier(cfg, D, K)
