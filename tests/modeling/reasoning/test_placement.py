"""Reasoning modules on any model: found by a path, and taken off again."""

import copy
import functools
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

import sgr
from foreign import TinyBackbone
from sgr.modeling.reasoning import SemanticGlobalReasoning

tiny = functools.partial(
    SemanticGlobalReasoning, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16
)


class Getter(nn.ModuleDict):
    """Runs its children one after the other, as torchvision's IntermediateLayerGetter."""

    def forward(self, x):
        out = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in ("low", "high"):
                out[name] = x
        return out


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Getter(
            {
                "low": nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
                "high": nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5)),
            }
        )
        self.head = nn.Conv2d(8, 3, 1)
        self.unused = nn.Conv2d(2, 2, 1)

    def forward(self, images):
        return F.interpolate(self.head(self.encoder(images)["high"]), scale_factor=4)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, images):
        return self.norm(self.patches(images).permute(0, 2, 3, 1))


class Takes(nn.Module):
    """Takes what its class attribute ``call`` says."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 4, 2, 2)

    def forward(self, pixels, *, scale):
        return self.net(scale * pixels[0])


IMAGES = torch.rand(2, 3, 16, 24)


@pytest.fixture
def model():
    return Segmenter().eval()


@pytest.mark.parametrize(
    ("name", "child", "channels", "stride"),
    [
        ("encoder", "encoder", 8, 4),
        ("encoder[low]", "encoder_low", 4, 2),
        ("encoder.high", "encoder_high", 8, 4),
        ("encoder.low.0", "encoder_low_0", 4, 2),
    ],
)
def test_by_a_path(model, name, child, channels, stride):
    """The module gets what the submodule puts out, and its result goes on from there."""
    plain = copy.deepcopy(model)
    assert sgr.add_reasoning(model, {name: tiny}) is model
    module = model.reasoning[child]
    assert (module.in_channels, module.stride) == (channels, stride)
    assert not module.training  # as the model
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert added == {f"reasoning.{child}.{name}" for name in module.state_dict()}

    owner, _, key = name.rstrip("]").partition("[")

    def enhance(_module, _inputs, output):
        if isinstance(output, dict):
            key_ = key or "high"
            return {**output, key_: module(output[key_])[0]}
        return module(output)[0]

    plain.get_submodule(owner).register_forward_hook(enhance)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain(IMAGES))


def test_a_container_may_be_the_model(model):
    """It runs its children in turn; the new one is among them and does nothing there."""
    getter = model.encoder
    expected = getter(IMAGES)
    sgr.add_reasoning(getter, {"": tiny})
    with torch.no_grad():
        found = getter(IMAGES)
        enhanced, _ = getter.reasoning["output"](expected["high"])
    assert list(found) == ["low", "high"]
    assert torch.equal(found["low"], expected["low"]) and torch.equal(found["high"], enhanced)


def test_channels_last():
    model = ChannelsLast()
    expected = model(IMAGES)
    sgr.add_reasoning(model, {"": tiny})
    assert model.reasoning["output"].in_channels == 8
    enhanced, _ = model.reasoning["output"].eval()(expected.permute(0, 3, 1, 2))
    assert torch.equal(model(IMAGES), enhanced.permute(0, 2, 3, 1))


def test_built_modules_need_no_example():
    model = Takes()
    sgr.add_reasoning(model, {"net": tiny(4)})
    assert model.reasoning["net"].stride is None
    assert model([IMAGES], scale=2.0).shape == (2, 4, 8, 12)


@pytest.mark.parametrize("example", [{"pixels": [IMAGES], "scale": 1.0}])
def test_an_example(example):
    model = Takes()
    sgr.add_reasoning(model, {"net": tiny(4)}, example=example)
    assert model.reasoning["net"].stride == 2


def test_a_stride_that_is_given_counts(model):
    sgr.add_reasoning(model, {"encoder": functools.partial(tiny, stride=16)})
    assert model.reasoning["encoder"].stride == 16


def test_a_stride_that_is_not_whole_is_unknown(model):
    sgr.add_reasoning(model, {"encoder": tiny}, example=torch.zeros(1, 3, 15, 22))
    assert model.reasoning["encoder"].in_channels == 8
    assert model.reasoning["encoder"].stride is None


def test_the_probe_leaves_the_model_alone(model):
    model.train()
    model.encoder.low.eval()
    hooks = {module: len(module._forward_hooks) for module in model.modules()}
    modes = {module: module.training for module in model.modules()}
    with pytest.raises(ValueError, match="'unused' did not run in a forward pass of Segmenter"):
        sgr.add_reasoning(model, {"unused": tiny})
    assert modes == {module: module.training for module in model.modules()}
    assert hooks == {module: len(module._forward_hooks) for module in model.modules()}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"encoder.hihg": tiny}, "no submodule 'encoder.hihg'; did you mean 'high'.*: low, high"),
        ({"backbone": tiny(8)}, "no submodule 'backbone'.*the model are: encoder, head, unused"),
        ({"encoder[": tiny}, "'encoder.' is no name of a feature"),
        ({"encoder[res5]": tiny}, r"'encoder\[res5\]' names no feature map.*it has: low, high"),
        ({"encoder": tiny, "head": tiny(4)}, "'head' takes 4 channels, the feature has 3"),
        ({"encoder.low": tiny, "encoder_low": tiny}, "no submodule 'encoder_low'"),
        ({"encoder.low": tiny, "encoder[low]": tiny}, "differ by dots only"),
    ],
)
def test_wrong_names(model, modules, words):
    with pytest.raises(ValueError, match=words):
        sgr.add_reasoning(model, modules)
    assert not hasattr(model, "reasoning")


@pytest.mark.parametrize("value", [nn.Identity(), lambda channels: channels, nn.Identity])
def test_no_reasoning_module(model, value):
    with pytest.raises(TypeError, match="for 'encoder', give a ReasoningModule"):
        sgr.add_reasoning(model, {"encoder": value})


def test_an_example_that_does_not_fit(model):
    with pytest.raises(ValueError, match="does not run on the example.*channels.*example="):
        sgr.add_reasoning(model, {"encoder": tiny}, example=torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match=r"Takes does not run on an image \(1, 3, 128, 192\)"):
        sgr.add_reasoning(Takes(), {"net": tiny})


def test_tokens_are_no_map():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))
    with pytest.raises(ValueError, match=r"'1' names no feature map.*\(1, 8, 1536\)"):
        sgr.add_reasoning(model, {"1": tiny})


def test_twice(model):
    sgr.add_reasoning(model, {"encoder": tiny})
    with pytest.raises(ValueError, match="already.*remove_reasoning"):
        sgr.add_reasoning(model, {"encoder": tiny})


def test_can_be_taken_off(model):
    expected, state = model(IMAGES), model.state_dict()
    sgr.add_reasoning(model.encoder, {"low": tiny})
    sgr.add_reasoning(model, {"encoder": tiny, "encoder.high.0": tiny})
    assert not hasattr(sgr.remove_reasoning(model), "reasoning")
    assert torch.equal(model(IMAGES), expected) and model.state_dict().keys() == state.keys()
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="Segmenter has no modules of sgr.add_reasoning"):
        sgr.remove_reasoning(model)
    sgr.add_reasoning(model, {"encoder": tiny})
    sgr.remove_reasoning(torch.compile(model))
    assert not hasattr(model, "reasoning")


def test_detectron2s_features_come_before_submodules():
    backbone = TinyBackbone()
    sgr.add_reasoning(backbone, {"stride4": tiny, "first": tiny(8)})
    assert list(backbone.reasoning) == ["stride4", "first"]
    assert (backbone.reasoning["stride4"].in_channels, backbone.reasoning["stride4"].stride) == (
        16,
        4,
    )


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
)
def test_copies_are_whole(model, copied):
    sgr.add_reasoning(model, {"encoder": tiny})
    clone = copied(model)
    with torch.no_grad():
        expected = model(IMAGES)
        assert torch.equal(clone(IMAGES), expected)
        clone.reasoning["encoder"].projection.bias.add_(1.0)
        assert torch.equal(model(IMAGES), expected)
        assert not torch.equal(clone(IMAGES), expected)
    with sgr.record_concepts(clone) as record:
        clone(IMAGES)
    assert list(record) == ["reasoning.encoder"]
    sgr.remove_reasoning(clone)
    assert not any(module._forward_hooks for module in clone.modules())
    assert any(module._forward_hooks for module in model.modules())


def test_another_process_does_not_take_the_number_of_its_hook(model, monkeypatch):
    """PyTorch counts hooks from 0 in each process, and a new one would replace a loaded one."""
    sgr.add_reasoning(model, {"encoder.low": tiny})
    with torch.no_grad():
        expected = model(IMAGES)
        data = pickle.dumps(model)
        monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a process that has just begun
        loaded = pickle.loads(data)
        number = next(iter(loaded.encoder.low._forward_hooks))
        for _ in range(number + 1):
            loaded.encoder.low.register_forward_hook(lambda *_: None)
        assert torch.equal(loaded(IMAGES), expected)


@pytest.mark.parametrize("name", ["encoder", "encoder.low"])
def test_export_and_compile(model, name):
    sgr.add_reasoning(model, {name: tiny})
    with torch.no_grad():
        expected = model(IMAGES)
        exported = torch.export.export(model, (IMAGES,)).module()
        torch.testing.assert_close(exported(IMAGES), expected)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(IMAGES), expected)


def test_the_check_of_features():
    module = tiny(8)
    for given, words in [
        (torch.zeros(1, 4, 4, 8), r"of C = 8 channels.*got \(1, 4, 4, 8\); the channels come last"),
        (torch.zeros(1, 7, 4, 4), r"got \(1, 7, 4, 4\)$"),
        (torch.zeros(8, 4, 4), r"got \(8, 4, 4\)$"),
        (torch.zeros(1, 8, 4, 4).numpy(), "got a ndarray"),
    ]:
        with pytest.raises(ValueError, match=words):
            module(given)
