import pytest
import torch
from torch import nn

from foreign import TinyBackbone
from sgr import add_reasoning, record_concepts
from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning


@pytest.fixture
def model():
    module = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=4
    )
    return nn.Sequential(add_reasoning(TinyBackbone(), {"stride4": module})).eval()


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_records_by_name(model):
    with record_concepts(model) as record:
        assert not record
        features = model(torch.rand(2, 3, 16, 24))
    assert list(record) == ["0.reasoning.stride4"]
    regions = record["0.reasoning.stride4"]
    assert regions.logits.shape == (2, 6, 4, 6) and regions.stride == 4
    assert regions.tokens.shape == (2, 6, 8) and regions.centroids.shape == (2, 6, 2)
    assert regions.logits.requires_grad and features["stride4"].shape == (2, 16, 4, 6)


def test_attributes_of_one_module():
    class Queries(nn.Module):
        def forward(self, x):
            return x

    own, silent = Queries(), SemanticGlobalReasoning(8, num_concepts=6, token_dim=8)
    own.concept_regions = lambda output: ConceptRegions(output, stride=2)
    own.supervised_concepts = True
    silent.supervised_concepts = False
    model = nn.ModuleDict({"own": own, "silent": silent})
    with record_concepts(model) as record:
        for module in model.values():
            module(torch.rand(1, 8, 3, 3))
    assert list(record) == ["own", "silent"] and record["own"].stride == 2
    assert list(record.supervised()) == ["own"]


def test_under_no_grad(model):
    with torch.no_grad(), record_concepts(model) as record:
        model(torch.rand(1, 3, 16, 16))
    assert not record["0.reasoning.stride4"].logits.requires_grad


def test_leaves_nothing_behind(model):
    before = hooks(model)
    with record_concepts(model) as record:
        assert hooks(model) == before + 1
    model(torch.rand(1, 3, 16, 16))
    assert hooks(model) == before and not record


def test_leaves_nothing_behind_after_an_exception(model):
    before = hooks(model)
    with pytest.raises(RuntimeError), record_concepts(model):
        model(torch.rand(1, 5, 16, 16))  # five channels
    assert hooks(model) == before


def test_nests(model):
    with record_concepts(model) as outer:
        with record_concepts(model) as inner:
            model(torch.rand(1, 3, 16, 16))
        first = outer["0.reasoning.stride4"]
        model(torch.rand(1, 3, 16, 16))
    assert inner["0.reasoning.stride4"].logits is first.logits
    assert outer["0.reasoning.stride4"].logits is not first.logits


def test_a_compiled_model_whose_first_training_step_is_recorded():
    module = SemanticGlobalReasoning(
        8, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, dropout=0.0
    )
    model = add_reasoning(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), {"0": module})
    compiled = torch.compile(model, backend="eager")
    for scale in (1, 2, 3):
        images = torch.rand(1, 3, 8, 8) * scale
        with record_concepts(model.train()) as record:
            compiled(images)
        with record_concepts(model) as expected:
            model(images)
        found, wanted = record["reasoning.0"].logits, expected["reasoning.0"].logits
        assert torch.equal(found, wanted) and found.requires_grad
        assert torch.equal(compiled.eval()(images), model(images))  # evaluated outside


def test_a_compiled_part_is_recorded_once():
    module = SemanticGlobalReasoning(8, num_concepts=6, token_dim=8)
    model = nn.Sequential(torch.compile(module, backend="eager"))
    with record_concepts(model) as record:
        model(torch.rand(1, 8, 3, 3))
    assert list(record.supervised()) == ["0._orig_mod"]
