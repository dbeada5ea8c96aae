"""The tree-triplet loss against literal triplets and the public module, and its criterion."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from hssn import TreeTripletLoss, TreeTripletSupervision
from hssn.triplet import rising_weight
from sgr.data.class_tree import ClassTree
from sgr.engine import load_config


def cells(embedding, labels):
    """(B, D, h, w) and (B, h, w) as (N, D) of length 1 and (N,)."""
    return F.normalize(embedding, dim=1).permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()


def literal(embeddings, labels, tree, samples, margin=None):
    """Over classes and triplets: the first of each role, in the order of the batch."""
    superclass = tree.groups[1]
    losses = []
    for c in range(tree.num_classes):
        kept = [place for place, label in enumerate(labels.tolist()) if label != 255]
        anchors = [p for p in kept if labels[p] == c]
        relatives = [p for p in kept if superclass[labels[p]] == superclass[c]]
        positives = [p for p in relatives if labels[p] != c]
        negatives = [p for p in kept if p not in relatives]
        terms = []
        for a, p, n in list(zip(anchors, positives, negatives))[:samples]:
            m = margin
            if m is None:
                psi = tree.distances[c, labels[n]] - tree.distances[c, labels[p]]
                m = 0.1 + 0.5 * float(psi) / (2 * tree.height)
            distances = 1 - embeddings[a] @ embeddings[p], 1 - embeddings[a] @ embeddings[n]
            terms.append((distances[0] - distances[1] + m).clamp_min(0))
        if terms:
            losses.append(torch.stack(terms).mean())
    return torch.stack(losses).sum(), len(losses)


@pytest.mark.parametrize("samples", [2, 200])
@pytest.mark.parametrize("margin", [-1.0, 0.6])
def test_literal_triplets(three_levels, samples, margin):
    """Values and gradients, with ignored pixels and an absent class."""
    embeddings = F.normalize(torch.randn(60, 5).double(), dim=1).requires_grad_()
    labels = torch.randint(6, (60,))
    labels[::7] = 255
    criterion = TreeTripletLoss(
        three_levels.tree, samples=samples, margin=margin, shuffle=False
    ).double()
    total, number = criterion(embeddings, labels)
    expected, count = literal(
        embeddings, labels, three_levels.tree, samples, None if margin < 0 else margin
    )
    assert number == count
    torch.testing.assert_close(total, expected, check_dtype=False)
    (gradient,) = torch.autograd.grad(total, embeddings)
    (wanted,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", ["two_levels", "rmi"])
def test_public_triplets(name, reference, tree_of, three_levels):
    """With its margin and its choice of pixels.

    Its code for persons takes no pixel of the background.
    """
    file, tree = reference(name), three_levels.tree
    labels = file.input_labels[:, ::2, ::2]
    labels = labels.where(labels > 0, 255)
    if name == "two_levels":
        tree = tree_of([19 + parent for parent in file.config["parents"]] + [-1] * 7, 19)
        labels = file.input_labels_at_embedding
    criterion = TreeTripletLoss(tree, margin=0.6, shuffle=False)
    total, number = criterion(*cells(file.input_embedding, labels))
    assert number == file.output_triplet_classes.item()
    torch.testing.assert_close(total / number, file.output_triplet, atol=1e-5, rtol=1e-5)


def test_margin_follows_the_tree():
    """Siblings and cousins, two levels: 0.1 + 0.5 x 0.5."""
    tree = ClassTree.parse({"a": ["0", "1"], "b": ["2"]}, list("012"))
    criterion = TreeTripletLoss(tree, samples=1)
    same = torch.ones(3, 1)  # all distances are 0, so a loss is its margin
    total, number = criterion(same, torch.tensor([0, 1, 2]))
    assert number == 2 and float(total / number) == pytest.approx(0.35)


def test_pixels_are_chosen_at_random(three_levels):
    embeddings, labels = cells(torch.randn(2, 4, 9, 9), torch.randint(7, (2, 9, 9)))
    criterion = TreeTripletLoss(three_levels.tree, samples=3)
    totals = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        totals.append(criterion(embeddings, labels)[0])
    assert totals[0] == totals[1] != totals[2]
    # All of them: which is taken first plays no role for the number of classes.
    assert criterion(embeddings, labels)[1] == 6


def test_ignored_pixels_are_in_no_triplet(three_levels):
    embeddings = torch.randn(40, 4, requires_grad=True)
    labels = torch.arange(40) % 7
    labels[5:30] = 255
    TreeTripletLoss(three_levels.tree)(embeddings, labels)[0].backward()
    assert embeddings.grad[5:30].abs().max() == 0 and embeddings.grad.abs().max() > 0


@pytest.mark.parametrize("labels", [255, 0])
def test_no_triplets(three_levels, labels):
    """All is ignored, or of the one class without siblings: 0 with gradients of 0."""
    embeddings = torch.randn(10, 4, requires_grad=True)
    total, number = TreeTripletLoss(three_levels.tree)(embeddings, torch.full((10,), labels))
    assert total == 0 and number == 0
    total.backward()
    assert embeddings.grad.abs().max() == 0


def test_schedule():
    """Half of a cosine: (1 - cos(pi t / T)) / 2."""
    expected = {0: 0, 20: 0.1464466, 40: 0.5, 60: 0.8535534, 80: 1, 120: 1}
    for iteration, weight in expected.items():
        assert rising_weight(iteration, 80) == pytest.approx(weight)


class Backbone(nn.Module):
    def output_shape(self):
        return {"res2": ShapeSpec(3, stride=4), "res5": ShapeSpec(6, stride=8)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()


def config(**keys):
    keys = {"SOLVER.MAX_ITER": 10, "MODEL.SEM_SEG_HEAD.NORM": "BN", **keys}
    keys = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9, **keys}
    keys["DATASETS.TRAIN"] = "('shapes_sem_seg_train',)"
    return load_config("", [str(each) for pair in keys.items() for each in pair])


def inputs(*sizes):
    return [{"sem_seg": torch.randint(9, size), "file_name": "a.jpg"} for size in sizes]


def test_criterion():
    """Its projection reads the coarsest feature; labels are those of the cells' middles."""
    criterion = TreeTripletSupervision.from_config(config(), Model())
    images = inputs((24, 40), (20, 30))  # the second is smaller than the batch
    features = torch.randn(2, 6, 3, 5, requires_grad=True)
    record = {"backbone": {"res5": features}}
    torch.manual_seed(5)
    with EventStorage(5):
        losses = criterion(None, record, images)
    labels = torch.full((2, 3, 5), 255)
    for index, image in enumerate(images):
        own = image["sem_seg"][4::8, 4::8]
        labels[index, : own.shape[0], : own.shape[1]] = own
    torch.manual_seed(5)
    total, number = criterion.loss(*cells(criterion.projection(features), labels))
    assert list(losses) == ["loss_tree_triplet"] and number > 0
    torch.testing.assert_close(losses["loss_tree_triplet"], 0.25 * total / number)
    losses["loss_tree_triplet"].backward()
    assert all(each.grad is not None for each in criterion.parameters())
    assert features.grad.abs().max() > 0
    torch.manual_seed(5)  # outside of a trainer, the weight is the last one
    last = criterion(None, record, images)["loss_tree_triplet"]
    torch.testing.assert_close(last, 2 * losses["loss_tree_triplet"])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "res5"),
        ({"MODEL.BACKBONE.NAME": "build_semask_swin_backbone"}, "res5"),
        ({"MODEL.BACKBONE.NAME": "build_semask_mit_backbone"}, "res5"),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2', 'res4']"}, "res4"),
        ({"MODEL.HSSN.TRIPLET_IN_FEATURE": "res3"}, "res3"),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": "['p2', 'p3']"}, "res5"),
    ],
)
def test_which_feature_is_projected(keys, expected):
    """The coarsest that the head reads, and no other map of the backbone: SeMask has some."""
    features = "['res2', 'res3', 'res4', 'res5']"
    cfg = config(
        **{
            "MODEL.DEVICE": "meta",
            "MODEL.BACKBONE.NAME": "build_swin_backbone",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": features,
            **keys,
        }
    )
    if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
        pytest.skip("the project SeMask is not installed")
    model = nn.Module()
    with torch.device("meta"):
        model.backbone = build_backbone(cfg)
        criterion = TreeTripletSupervision.from_config(cfg, model)
    shape = model.backbone.output_shape()[expected]
    assert (criterion.feature, criterion.stride) == (expected, shape.stride)
    assert criterion.projection[0].in_channels == shape.channels


def test_criterion_of_ignored_images():
    criterion = TreeTripletSupervision.from_config(config(), Model())
    images = [{"sem_seg": torch.full((16, 16), 255)}]
    (loss,) = criterion(None, {"backbone": {"res5": torch.randn(1, 6, 2, 2)}}, images).values()
    assert loss == 0
    loss.backward()
    assert all(each.grad.abs().max() == 0 for each in criterion.parameters())


def test_mistakes(caplog):
    assert (
        TreeTripletSupervision.from_config(config(**{"MODEL.HSSN.TRIPLET_WEIGHT": 0.0}), 0) is None
    )
    no_superclass = "['sky', 'water', 'grass', 'wall', 'disc', 'box', 'triangle', 'star', 'ring']"
    for tree in (no_superclass, f"[{{'all': {no_superclass}}}]"):
        with caplog.at_level(logging.WARNING):
            cfg = config(**{"MODEL.HSSN.TREE": tree})
            assert TreeTripletSupervision.from_config(cfg, Model()) is None
        assert "No tree-triplet loss" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match="SimpleNamespace has no backbone"):
        TreeTripletSupervision.from_config(config(), SimpleNamespace())
    with pytest.raises(ValueError, match="TRIPLET_IN_FEATURE is 'res9', .* gives res2, res5"):
        TreeTripletSupervision.from_config(
            config(**{"MODEL.HSSN.TRIPLET_IN_FEATURE": "res9"}), Model()
        )
    with pytest.raises(ValueError, match="TRIPLET_SAMPLES"):
        TreeTripletSupervision.from_config(config(**{"MODEL.HSSN.TRIPLET_SAMPLES": 0}), Model())
    criterion = TreeTripletSupervision.from_config(config(), Model())
    with pytest.raises(ValueError, match="input 0 .a.jpg. has no labels 'sem_seg'"):
        criterion(None, {}, [{"file_name": "a.jpg"}])
