"""Losses beside those of a model, without an edited line of this package."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

import sgr
from foreign import ForeignModel, TinyBackbone, tiny_inputs, tiny_resnet_config
from sgr.engine import Trainer
from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning
from sgr.modeling.supervision import SIDE_CRITERION_REGISTRY, SideCriterion

SIZES = ((64, 96), (64, 96))
CONCEPT_LOSSES = {"loss_concept_focal", "loss_concept_dice", "loss_concept_cosine"}


class ClassMapLoss(SideCriterion):
    """Cross entropy of maps that a classifier of its own makes of a feature of the backbone."""

    recorded_modules = ("backbone",)

    def __init__(self, feature, channels, weight=0.4):
        super().__init__()
        self.feature, self.weight = feature, weight
        self.classifier = nn.Conv2d(channels, 3, 1)

    @classmethod
    def from_config(cls, cfg, model):
        return cls("res4", model.backbone.output_shape()["res4"].channels)

    def forward(self, model, record, batched_inputs):
        maps = self.classifier(record["backbone"][self.feature])
        labels = torch.stack([image["sem_seg"][::16, ::16] for image in batched_inputs])
        scores = F.interpolate(maps, labels.shape[-2:])
        loss = F.cross_entropy(scores, labels)
        return {"loss_class_map": self.weight * loss}


class RegionLoss(SideCriterion):
    """Regions shall be small."""

    def forward(self, model, record, batched_inputs):
        regions = [value for value in record.values() if isinstance(value, ConceptRegions)]
        return {"loss_mass": sum(one.probabilities.mean() for one in regions)}


def with_regions():
    module = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=4
    )
    return sgr.add_reasoning(TinyBackbone(), {"stride4": module})


def test_by_objects():
    """On features and on regions; each model learns criteria of its own."""
    criteria = [ClassMapLoss("stride4", 16), RegionLoss()]
    supervised = sgr.supervise(ForeignModel, criteria)
    model, other = supervised(with_regions()), supervised(TinyBackbone())
    losses = model(tiny_inputs(SIZES))
    assert losses.keys() == {"loss_sem_seg", "loss_class_map", "loss_mass"}
    (losses["loss_class_map"] + losses["loss_mass"]).backward()
    assert model.backbone.first.weight.grad.any()
    weights = [one.side_criteria["ClassMapLoss"].classifier.weight for one in (model, other)]
    assert (
        weights[0].grad.any()
        and weights[1].grad is None
        and criteria[0].classifier.weight.grad is None
    )
    added = model.state_dict().keys() - ForeignModel(with_regions()).state_dict().keys()
    assert added == {f"side_criteria.ClassMapLoss.classifier.{name}" for name in ("weight", "bias")}
    assert model.eval()(tiny_inputs(SIZES))[0].keys() == {"sem_seg"}


@pytest.fixture
def cfg():
    if "ClassMapLoss" not in SIDE_CRITERION_REGISTRY:
        SIDE_CRITERION_REGISTRY.register(ClassMapLoss)
    cfg = tiny_resnet_config()
    cfg.MODEL.META_ARCHITECTURE = "ConceptSemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NAME = "FCNHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    return cfg


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_by_config(cfg, weight):
    assert "ConceptSemanticSegmentor" in META_ARCH_REGISTRY
    cfg.MODEL.SIDE_CRITERIA = ["ConceptSupervision", "ClassMapLoss"]
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = weight
    model = build_model(cfg)
    with EventStorage():
        losses = model(tiny_inputs(SIZES))
    concepts = CONCEPT_LOSSES if weight else set()
    assert losses.keys() == {"loss_sem_seg", "loss_class_map"} | concepts
    losses["loss_class_map"].backward()
    assert (model.concept_criterion is None) == (weight == 0)


def test_a_meta_architecture_without_side_criteria(cfg):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SIDE_CRITERIA = ["ClassMapLoss"]
    with pytest.raises(ValueError, match="SIDE_CRITERIA has ClassMapLoss.*ConceptSemanticSegm"):
        Trainer.build_model(cfg)


def test_unknown_criterion(cfg):
    cfg.MODEL.SIDE_CRITERIA = ["Nonsense"]
    with pytest.raises(ValueError, match="SIDE_CRITERIA is 'Nonsense'.*ConceptSupervision"):
        build_model(cfg)


def test_two_losses_of_one_name():
    class Clash(SideCriterion):
        def forward(self, model, record, batched_inputs):
            return {"loss_sem_seg": torch.zeros(())}

    with pytest.raises(ValueError, match="Clash gives a loss .* taken: loss_sem_seg; name it"):
        sgr.supervise(ForeignModel, [Clash()])(TinyBackbone())(tiny_inputs(SIZES))


def test_a_module_that_is_not_there():
    criterion = ClassMapLoss("stride4", 16)
    criterion.recorded_modules = ("trunk",)
    with pytest.raises(AttributeError, match="trunk"):
        sgr.supervise(ForeignModel, [criterion])(TinyBackbone())(tiny_inputs(SIZES))
