"""The concept losses in a training loop of one's own."""

import numpy as np
import pytest
import torch
from torch import nn

import sgr
from foreign import TinyBackbone
from sgr.modeling.reasoning import GloRe, SemanticGlobalReasoning
from sgr.modeling.supervision import (
    ComponentMaps,
    ConceptCriterion,
    ConceptMatcher,
    ConceptSupervision,
)


def module(channels, stride=None):
    return SemanticGlobalReasoning(
        channels, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=stride
    )


@pytest.fixture
def model():
    return sgr.add_reasoning(TinyBackbone(), {"stride4": module(16), "stride2": module(8)}).eval()


@pytest.fixture
def maps():
    maps = [torch.randint(-1, 3, size, dtype=torch.int16) for size in ((16, 24), (13, 20))]
    maps[0][0, 0] = 2
    return ComponentMaps(maps, [3, 3])


IMAGES = torch.rand(2, 3, 16, 24)


def recorded(model):
    with sgr.record_concepts(model) as record:
        model(IMAGES)
    return record


def test_it_is_the_sum_over_modules_and_terms(model, maps):
    options = {"weight": 0.5, "dice_weight": 2.0, "focal_gamma": 1.0, "union": "sum"}
    matcher = ConceptMatcher(max_active=4, dice_weight=2.0, focal_gamma=1.0)
    criterion = ConceptCriterion(matcher, **options)
    loss = sgr.ConceptLoss(max_active=4, **options)
    record = recorded(model)
    expected = [
        value for regions in record.values() for value in criterion(regions, *maps).losses.values()
    ]
    assert len(expected) == 6
    torch.testing.assert_close(loss(record, maps), sum(expected))
    torch.testing.assert_close(sum(loss.terms(record, maps).values()), sum(expected))

    # The criterion of Detectron2's models says the same of the same record.
    inputs = [
        {"component_map": each, "component_classes": range(count)} for each, count in zip(*maps)
    ]
    terms = ConceptSupervision(criterion)(model, record, inputs)
    torch.testing.assert_close(terms["loss_concept_dice"], loss.terms(record, maps)["dice"])


def test_every_weight_reaches_the_matcher():
    weights = {"focal_weight": 3.0, "dice_weight": 4.0, "focal_alpha": 0.5, "focal_gamma": 5.0}
    matcher = sgr.ConceptLoss(max_active=7, **weights).criterion.matcher
    assert {name: getattr(matcher, name) for name in weights} == weights
    assert matcher.max_active == 7


def test_the_model_learns_from_it(model, maps):
    sgr.ConceptLoss(max_active=4)(recorded(model), maps).backward()
    assert model.first.weight.grad.any()
    for each in model.reasoning.values():
        assert each.concepts.weight.grad.any()


@pytest.mark.parametrize("form", [list, torch.stack, lambda maps: [each.numpy() for each in maps]])
def test_maps_may_be_counted(model, maps, form):
    loss, record = sgr.ConceptLoss(max_active=4), recorded(model)
    maps = [maps.indices[0], maps.indices[0].flip(0)]
    counted = ComponentMaps(maps, [3, 3])
    torch.testing.assert_close(loss(record, form(maps)), loss(record, counted))


def test_no_component(model):
    nothing = [np.full((16, 24), -1), np.zeros((0, 24), int)]
    assert sgr.ConceptLoss(max_active=4)(recorded(model), nothing) == 0


def test_glore_adds_nothing(model, maps):
    sgr.remove_reasoning(model)
    sgr.add_reasoning(model, {"stride4": GloRe(16, num_concepts=3, token_dim=4)})
    assert sgr.ConceptLoss(max_active=64)(recorded(model), maps) == 0
    sgr.add_reasoning(model.second, {"": module(16, 4)})
    assert list(recorded(model).supervised()) == ["second.reasoning.output"]


def test_what_cannot_be_compared(model, maps):
    loss, record = sgr.ConceptLoss(max_active=4), recorded(model)
    with pytest.raises(ValueError, match="regions of 2 images, but component maps of 1"):
        loss(record, maps.indices[:1])
    for wrong in (torch.zeros(16, 24), torch.zeros(3, 16, 24, dtype=torch.int16)):
        with pytest.raises(ValueError, match="a component map is .H, W. integers.*got"):
            loss(record, [wrong, wrong])
    with pytest.raises(ValueError, match="does not fit .*pad the images to a multiple"):
        loss(record, [maps.indices[0], torch.zeros(40, 40, dtype=torch.int16)])
    with pytest.raises(ValueError, match="6 concepts, but 64.*raise num_concepts .*max_active"):
        sgr.ConceptLoss()(record, maps)
    model.reasoning["stride4"].stride = None
    with pytest.raises(ValueError, match="without a stride.*stride=.*example"):
        loss(recorded(model), maps)


def test_warnings_of_what_teaches_nothing(model, maps, recwarn):
    loss = sgr.ConceptLoss(max_active=4)
    loss(recorded(model), maps)
    with torch.no_grad():
        loss(recorded(model), maps)  # a validation
    assert not recwarn
    with pytest.warns(UserWarning, match="all component maps are less than half as high"):
        loss(recorded(model), [each[:4, :6].clamp(max=-1) for each in maps.indices])
    with torch.no_grad():
        record = recorded(model)
    with pytest.warns(UserWarning, match="have no gradient, .*use_reentrant=False"):
        loss(record, maps)


def test_nothing_recorded(model, maps):
    with sgr.record_concepts(model) as record:
        pass
    with pytest.raises(ValueError, match="are recorded of reasoning.stride2, .*with block"):
        sgr.ConceptLoss()(record, maps)


def test_a_model_without_modules(maps):
    with pytest.raises(ValueError, match="no concept regions are recorded: .*add_reasoning"):
        sgr.ConceptLoss()(recorded(nn.Conv2d(3, 4, 1)), maps)


def test_under_distributed_data_parallel(model, maps, tmp_path):
    """All parameters of the wrapped model get their gradient, and its record is as ever."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with sgr.record_concepts(wrapped) as record:
            task_loss = sum(feature.square().mean() for feature in wrapped(IMAGES).values())
        assert list(record) == ["module.reasoning.stride4", "module.reasoning.stride2"]
        (task_loss + sgr.ConceptLoss(max_active=4)(record, maps)).backward()
    finally:
        distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())
