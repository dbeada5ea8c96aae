"""A classifier and a loss of somebody else's, each in one class, in the heads that exist."""

import pytest
import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

import sgr
from sgr.modeling.per_pixel import (
    PIXEL_CLASSIFIER_REGISTRY,
    PIXEL_LOSS_REGISTRY,
    LinearClassifier,
    PixelLoss,
    PixelPrediction,
)
from sgr.modeling.per_pixel.losses import labels_of_cells, upsample_to_labels
from sgr.modeling.reasoning import ConceptRegions


class NearestPrototype(nn.Module):
    """Prototypes of every class, as in ProtoSeg: a logit is the cosine to the nearest of them."""

    supervised_concepts = False
    prototypes_per_class = 2

    @configurable
    def __init__(self, in_channels, num_outputs, *, stride, ignore_value):
        super().__init__()
        self.stride, self.ignore_value = stride, ignore_value
        start = F.normalize(torch.randn(num_outputs, self.prototypes_per_class, in_channels), dim=2)
        self.register_buffer("prototypes", start)

    @classmethod
    def from_config(cls, cfg, in_channels, num_outputs, *, stride):
        return {
            "in_channels": in_channels,
            "num_outputs": num_outputs,
            "stride": stride,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(self, features, labels=None):
        embeddings = F.normalize(features.float(), dim=1)
        cosines = torch.einsum("kpc,bchw->bkphw", self.prototypes, embeddings)
        logits, nearest = cosines.max(2)
        regions = ConceptRegions(logits=cosines.flatten(1, 2) / 0.1)
        if labels is None:
            return PixelPrediction(logits, regions=regions)
        images, rows, columns = (labels != self.ignore_value).nonzero().unbind(1)
        classes = labels[images, rows, columns]
        chosen = nearest[images, classes, rows, columns]
        read = embeddings[images, :, rows, columns]
        distance = (1 - (read * self.prototypes[classes, chosen]).sum(1)).square().mean()
        with torch.no_grad():
            moved = self.prototypes.index_put((classes, chosen), read.detach(), accumulate=True)
            self.prototypes = F.normalize(moved, dim=2)
        return PixelPrediction(logits, {"loss_prototype_distance": 0.01 * distance}, regions)

    def concept_regions(self, output):
        return output.regions._replace(stride=self.stride)


class ReadsLevels(LinearClassifier):
    """Keeps the labels that it gets."""

    levels = ()

    def forward(self, features, labels=None):
        self.labels = labels
        return super().forward(features)


class TreeLoss(PixelLoss):
    """Binary losses of classes and their parents, and one of features, as in HSSN."""

    @configurable
    def __init__(self, num_classes, *, parents, **options):
        super().__init__(num_classes, **options)
        self.register_buffer("parents", torch.tensor(parents), persistent=False)
        self.levels = num_classes, max(parents) + 1
        self.num_outputs = sum(self.levels)

    @classmethod
    def from_config(cls, cfg, num_classes, **options):
        parents = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).parent_of_class
        return {"num_classes": num_classes, "parents": parents, **options}

    def forward(self, logits, labels, stride, features=None):
        logits = upsample_to_labels(logits.float(), labels, stride)
        labelled = labels != self.ignore_value
        classes = labels.where(labelled, 0)
        targets = torch.zeros_like(logits)
        targets.scatter_(1, classes[:, None], 1)
        targets.scatter_(1, len(self.parents) + self.parents[classes][:, None], 1)
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        losses = {"loss_sem_seg": terms[labelled].mean()}
        if features is not None:
            cells = labels_of_cells(labels, features, stride, self.ignore_value)
            spread = features.float().var(1)[cells != self.ignore_value]
            losses["loss_spread"] = spread.mean()
        return losses

    def level_labels(self, labels):
        labelled = labels != self.ignore_value
        classes = labels.where(labelled, 0)
        nodes = torch.stack([classes, len(self.parents) + self.parents[classes]])
        return nodes.where(labelled, -1)

    def class_logits(self, logits):
        scores = F.logsigmoid(logits)
        return scores[:, : len(self.parents)] + scores[:, len(self.parents) + self.parents]


@pytest.fixture(autouse=True)
def registered():
    parts = (
        (PIXEL_CLASSIFIER_REGISTRY, NearestPrototype),
        (PIXEL_CLASSIFIER_REGISTRY, ReadsLevels),
        (PIXEL_LOSS_REGISTRY, TreeLoss),
    )
    for registry, part in parts:
        if part.__name__ not in registry:
            registry.register(part)


@pytest.fixture(params=["FCNHead", "AnySizeDeepLabV3Head", "UperNetHead"])
def build(request, cfg, input_shape):
    def build(**options):
        for key, value in {"AUX_IN_FEATURE": "res4", "AUX_CHANNELS": 8, **options}.items():
            cfg.MODEL.SEM_SEG_HEAD[key] = value
        return SEM_SEG_HEADS_REGISTRY.get(request.param)(cfg, input_shape)

    return build


def test_a_classifier_that_learns_from_labels(build, features, labels):
    head = build(CLASSIFIER_NAME="NearestPrototype")
    before = head.predictor.prototypes.clone()
    losses = head(features, labels)[1]
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_aux", "loss_prototype_distance"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert not torch.equal(head.predictor.prototypes, before)
    with sgr.record_concepts(head.eval()) as record, torch.no_grad():
        logits, _ = head(features)
    assert logits.shape == (2, 5, 64, 96)
    assert record["predictor"].logits.shape == (2, 10, 8, 12)
    assert record["predictor"].stride == 8


def test_a_loss_of_a_tree_of_classes(build, features, labels, cfg):
    cfg.DATASETS.TRAIN = ("classes_in_a_tree",)
    MetadataCatalog.get("classes_in_a_tree").parent_of_class = [0, 0, 1, 1, 1]
    head = build(LOSS_TYPE="TreeLoss", LOSS_WEIGHT=2.0)
    assert head.predictor.out_channels == head.aux_predictor[-1].out_channels == 7
    losses = head(features, labels)[1]
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_aux", "loss_spread"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.eval()(features)[0].shape == (2, 5, 64, 96)


def test_a_classifier_that_learns_from_levels_gets_their_labels(build, features, labels, cfg):
    """And no other one."""
    cfg.DATASETS.TRAIN = ("classes_in_a_tree",)
    MetadataCatalog.get("classes_in_a_tree").parent_of_class = [0, 0, 1, 1, 1]
    head = build(LOSS_TYPE="TreeLoss", CLASSIFIER_NAME="ReadsLevels")
    assert head.predictor.levels == (5, 2)
    labels[:, :8] = 255
    head(features, labels)
    classes, parents = head.predictor.labels
    cells = labels[:, 4::8, 4::8]
    assert torch.equal(classes, cells.where(cells < 5, -1))
    assert torch.equal(parents, torch.where(cells < 2, 5, 6).where(cells < 5, -1))
    assert build(LOSS_TYPE="cross_entropy").predictor.levels == ()
    linear = build(LOSS_TYPE="TreeLoss", CLASSIFIER_NAME="LinearClassifier").predictor
    assert not hasattr(linear, "levels")


def test_a_path_decides_for_the_class():
    loss = TreeLoss(3, parents=[0, 1, 1])
    # Class 0 is the likeliest by itself, but its parent is not.
    logits = torch.tensor([1.0, 0.5, 0.0, -2.0, 2.0]).view(1, 5, 1, 1)
    assert loss.class_logits(logits).argmax(1).item() == 1
