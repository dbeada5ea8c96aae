import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

from foreign import TinyBackbone, tiny_resnet_config
from sgr import add_reasoning
from sgr.modeling.backbone import add_reasoning_from_config
from sgr.modeling.reasoning import SemanticGlobalReasoning


def tiny_reasoning(channels, stride=4):
    return SemanticGlobalReasoning(
        channels, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=stride
    )


@pytest.fixture
def cfg():
    cfg = tiny_resnet_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    return cfg


def build(cfg, name):
    cfg.MODEL.BACKBONE.NAME = name
    return build_backbone(cfg)


def test_same_names_channels_strides_and_the_enhanced_feature():
    plain = TinyBackbone()
    wrapped = add_reasoning(copy.deepcopy(plain), {"stride4": tiny_reasoning(16)})
    assert isinstance(wrapped, TinyBackbone)
    assert wrapped.output_shape() == plain.output_shape()
    images = torch.rand(2, 3, 32, 48)
    features, expected = wrapped(images), plain(images)
    assert list(features) == list(expected)
    assert torch.equal(features["stride2"], expected["stride2"])
    wrapped.reasoning.eval()
    enhanced, _ = wrapped.reasoning["stride4"](expected["stride4"])
    assert torch.equal(wrapped(images)["stride4"], enhanced)


def test_several_features():
    modules = {"stride2": tiny_reasoning(8, 2), "stride4": tiny_reasoning(16)}
    wrapped = add_reasoning(TinyBackbone(), modules)
    features = wrapped(torch.rand(1, 3, 16, 16))
    assert features["stride2"].shape == (1, 8, 8, 8) and features["stride4"].shape == (1, 16, 4, 4)


def test_survives_a_deep_copy():
    wrapped = add_reasoning(TinyBackbone(), {"stride4": tiny_reasoning(16)}).eval()
    images = torch.rand(1, 3, 16, 16)
    clone = copy.deepcopy(wrapped)
    with torch.no_grad():
        assert torch.equal(clone(images)["stride4"], wrapped(images)["stride4"])
        clone.reasoning["stride4"].projection.weight.zero_()
        assert not torch.equal(clone(images)["stride4"], wrapped(images)["stride4"])


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"res5": tiny_reasoning(16)}, "'res5'.*stride2, stride4"),
        ({"stride4": tiny_reasoning(8)}, ".stride4. takes 8 channels.*has 16"),
    ],
)
def test_wrong_modules(modules, words):
    with pytest.raises(ValueError, match=words):
        add_reasoning(TinyBackbone(), modules)


def test_twice():
    wrapped = add_reasoning(TinyBackbone(), {"stride4": tiny_reasoning(16)})
    with pytest.raises(ValueError, match="already"):
        add_reasoning(wrapped, {"stride2": tiny_reasoning(8)})


def test_resnet_by_name(cfg):
    backbone = build(cfg, "build_sgr_resnet_backbone")
    module = backbone.reasoning["res5"]
    assert (module.in_channels, module.stride) == (512, 32)
    assert backbone(torch.rand(1, 3, 65, 97))["res5"].shape == (1, 512, 3, 4)


def test_under_a_feature_pyramid(cfg):
    cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    backbone = build(cfg, "build_sgr_resnet_fpn_backbone").eval()
    images = torch.rand(1, 3, 64, 64)
    before = backbone(images)["p4"]
    with torch.no_grad():
        backbone.bottom_up.reasoning["res5"].projection.bias.add_(1.0)
    assert not torch.allclose(before, backbone(images)["p4"])


@pytest.fixture
def swin_cfg(cfg):
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 2, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 2, 4]
    return cfg


def test_swin_by_name(swin_cfg):
    """The reasoning module adds parameters and renames none."""
    plain = build(swin_cfg, "build_swin_backbone").eval()
    backbone = build(swin_cfg, "build_sgr_swin_backbone").eval()
    module = backbone.reasoning["res5"]
    assert (module.in_channels, module.stride) == (64, 32)
    added = backbone.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() < backbone.state_dict().keys()
    assert all(name.startswith("reasoning.res5.") for name in added)
    backbone.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        features, expected = backbone(images), plain(images)
        enhanced, _ = module(expected["res5"])
    assert torch.equal(features["res4"], expected["res4"])
    torch.testing.assert_close(features["res5"], enhanced)


def test_swin_under_a_feature_pyramid(swin_cfg):
    swin_cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build(swin_cfg, "build_sgr_swin_fpn_backbone").eval()
    assert list(backbone.bottom_up.reasoning) == ["res5"] and backbone.size_divisibility == 32
    features = backbone(torch.rand(1, 3, 64, 96))
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    assert features["p2"].shape == (1, 256, 16, 24)


def test_any_registered_backbone(cfg):
    if "TinyForTest" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build_tiny_for_test)
    cfg.MODEL.SGR.BACKBONE_NAME = "build_tiny_for_test"
    cfg.MODEL.SGR.IN_FEATURES = ["stride2"]
    assert list(build(cfg, "build_sgr_backbone").reasoning) == ["stride2"]


def build_tiny_for_test(cfg, input_shape: ShapeSpec):
    return TinyBackbone()


def test_unknown_backbone(cfg):
    cfg.MODEL.SGR.BACKBONE_NAME = "build_nonsense"
    with pytest.raises(ValueError, match="'build_nonsense'.*build_resnet_backbone"):
        build(cfg, "build_sgr_backbone")


def test_unknown_feature(cfg):
    cfg.MODEL.SGR.IN_FEATURES = ["res6"]
    with pytest.raises(ValueError, match="'res6'.*res4, res5"):
        build(cfg, "build_sgr_resnet_backbone")


def test_a_checkpoint_of_the_plain_backbone_loads(cfg, tmp_path):
    plain = build(cfg, "build_resnet_backbone")
    DetectionCheckpointer(torch.nn.ModuleDict({"backbone": plain}), str(tmp_path)).save("plain")
    wrapped = build(cfg, "build_sgr_resnet_backbone")
    DetectionCheckpointer(torch.nn.ModuleDict({"backbone": wrapped})).load(
        str(tmp_path / "plain.pth")
    )
    state = wrapped.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert all(name.startswith("reasoning.") for name in state.keys() - plain.state_dict().keys())


def test_an_imagenet_pickle_loads(cfg, tmp_path):
    """In the format of Detectron2's R-101.pkl: arrays without a prefix, matched by suffix."""
    import pickle

    plain = build(cfg, "build_resnet_backbone")
    arrays = {name: value.numpy() for name, value in plain.state_dict().items()}
    file = tmp_path / "R-18.pkl"
    file.write_bytes(
        pickle.dumps({"model": arrays, "__author__": "torchvision", "matching_heuristics": True})
    )
    model = torch.nn.ModuleDict({"backbone": build(cfg, "build_sgr_resnet_backbone")})
    DetectionCheckpointer(model).load(str(file))
    assert torch.equal(
        model["backbone"].res5[1].conv2.weight, plain.state_dict()["res5.1.conv2.weight"]
    )


def test_function_form_reads_the_config(cfg):
    cfg.MODEL.SGR.IN_FEATURES = ["stride4"]
    backbone = add_reasoning_from_config(TinyBackbone(), cfg)
    assert backbone.reasoning["stride4"].stride == 4
