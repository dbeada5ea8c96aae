"""Models of timm as backbones, beside timm itself."""

import re
import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone
from torch import nn

from foreign import tiny_resnet_config
from sgr.engine.setup import fit_to_machine
from sgr.engine.solver import parameter_groups
from sgr.modeling.backbone import TimmBackbone

timm = pytest.importorskip("timm")

LITE0, SWIN = "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"


@pytest.fixture
def cfg():
    cfg = tiny_resnet_config()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = LITE0
    return cfg


def timm_features(backbone, name, images, **options):
    """What timm's own wrapper gives with the weights of ``backbone``, stride -> feature."""
    net = timm.create_model(name, features_only=True, feature_cls="getter", **options).eval()
    net.model.load_state_dict(backbone.net.state_dict())
    return dict(zip(net.feature_info.module_name(), net(images)))


@pytest.mark.parametrize("name", [LITE0, "convnext_atto", "resnet18", SWIN])
@torch.no_grad()
def test_features_are_those_of_timm(name):
    options = {"strict_img_size": False} if name.startswith("swin") else {}
    backbone = TimmBackbone(name, options=options).eval()
    images = torch.rand(2, 3, 64, 96)
    features = backbone(images)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    expected = timm_features(backbone, name, images, **options).values()
    for (feature, maps), other in zip(features.items(), list(expected)[-4:]):
        stride = 2 ** int(feature[3:])
        torch.testing.assert_close(maps, other)
        shape = backbone.output_shape()[feature]
        assert shape == ShapeSpec(channels=maps.shape[1], stride=stride)
        assert maps.shape[2:] == (64 // stride, 96 // stride) and maps.is_contiguous()


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(output_stride):
    backbone = TimmBackbone(LITE0, output_stride=output_stride)
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides == [4, 8, min(output_stride, 16), output_stride]
    assert backbone.size_divisibility == 32
    side = 64 // output_stride
    assert backbone(torch.rand(2, 3, 64, 64))["res5"].shape == (2, 320, side, side)


def test_what_is_not_asked_for_is_not_built_or_not_trained():
    backbone = TimmBackbone(LITE0, out_features=["res3", "res1"])
    assert list(backbone.output_shape()) == ["res1", "res3"]
    assert not any(name.startswith(("net.blocks.3", "net.conv_head")) for name in names(backbone))
    # The second has connections between its branches that only coarser features read.
    for each in (backbone, TimmBackbone("hrnet_w18_small", out_features=["res2"])):
        sum(maps.sum() for maps in each(torch.rand(2, 3, 64, 64)).values()).backward()
        for parameter in each.parameters():  # as distributed training wants it
            assert (parameter.grad is not None) == parameter.requires_grad


def names(module, trained=None):
    return {
        name
        for name, parameter in module.named_parameters()
        if trained is None or parameter.requires_grad == trained
    }


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (LITE0, [("conv_stem", "bn1", "blocks.0"), ("blocks.1",), ("blocks.2",)]),
        ("convnext_atto", [("stem",), ("stages.0",), ("stages.1",), ("stages.2",), ("stages.3",)]),
    ],
)
@pytest.mark.parametrize("freeze_at", [-1, 0, 1, 2, 3])
def test_frozen_parts(name, parts, freeze_at, cfg, caplog):
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    with caplog.at_level("INFO"):
        backbone = build_backbone(cfg)
    prefixes = tuple(f"net.{part}." for group in parts[: max(freeze_at, 0)] for part in group)
    expected = {name for name in names(backbone) if prefixes and name.startswith(prefixes)}
    assert names(backbone, trained=False) == expected
    assert ("0 trains all" in caplog.text) == (freeze_at > 0)
    backbone(torch.rand(2, 3, 64, 64))["res5"].sum().backward()


@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_frozen_parts_before_res2(freeze_at):
    backbone = TimmBackbone(LITE0, out_features=["res1"], freeze_at=freeze_at)
    assert bool(names(backbone, trained=True)) == (freeze_at == 0)


def test_frozen_parts_stay_in_evaluation():
    backbone = TimmBackbone(LITE0, freeze_at=3, drop_path_rate=0.5)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 1, 2)
    images = torch.rand(2, 3, 64, 64)
    expected = backbone.eval()(images)
    outputs = backbone.train()(images)
    assert backbone.training and backbone.net.blocks[3].training
    for feature in ("res2", "res3"):
        torch.testing.assert_close(outputs[feature], expected[feature])
    assert not torch.equal(outputs["res4"], expected["res4"])
    backbone.freeze(1)
    assert not backbone.net.blocks[2].training  # what is frozen stays so


def test_drop_path():
    images = torch.rand(2, 3, 64, 64)
    for rate, sizes in ((0.0, {1}), (0.5, {2, 3, 4})):
        backbone = TimmBackbone("convnext_atto", drop_path_rate=rate)
        with torch.no_grad():
            different = {backbone(images)["res5"].sum().item() for _ in range(4)}
        assert len(different) in sizes


@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_frozen_norms(name, cfg):
    """Norms of a plain kind, and norms that hold an activation."""
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    backbone, plain = build_backbone(cfg), TimmBackbone(name).eval()
    assert backbone.state_dict().keys() <= plain.state_dict().keys()
    assert not any(".bn" in parameter for parameter in names(backbone))
    backbone.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone.train()(images)["res4"], plain(images)["res4"])


def test_synchronised_norms(cfg):
    cfg.MODEL.TIMM.NORM = "SyncBN"
    kinds = {type(module).__name__ for module in build_backbone(cfg).modules()}
    assert "SyncBatchNormAct" in kinds and "BatchNormAct2d" not in kinds
    fit_to_machine(cfg)  # one process
    assert cfg.MODEL.TIMM.NORM == "BN"
    assert build_backbone(cfg).net.bn1.__class__.__name__ == "BatchNormAct2d"


def test_no_weight_decay_as_timm_declares_it(cfg):
    cfg.MODEL.TIMM.NAME = SWIN
    cfg.MODEL.TIMM.OPTIONS.strict_img_size = False
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    declared = {f"net.{name}" for name in model.backbone.net.no_weight_decay()}
    assert declared and declared <= model.backbone.no_weight_decay()
    decayed = {
        id(parameter)
        for group in parameter_groups(cfg, model)
        for parameter in group["params"]
        if group["weight_decay"] > 0
    }
    parameters = dict(model.backbone.named_parameters())
    assert not decayed & {id(parameters[name]) for name in declared}
    assert id(parameters["net.layers.0.blocks.0.attn.qkv.weight"]) in decayed


def test_scales_of_layers_get_no_weight_decay():
    names = TimmBackbone("convnext_atto").no_weight_decay()
    assert "net.stages.0.blocks.0.gamma" in names
    assert not any(name.endswith((".weight", ".bias")) for name in names)


def test_under_a_feature_pyramid_and_with_reasoning(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_sgr_timm_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    backbone = build_backbone(cfg)
    assert isinstance(backbone, FPN) and list(backbone.bottom_up.reasoning) == ["res5"]
    assert backbone(torch.rand(1, 3, 64, 64))["p5"].shape == (1, 16, 2, 2)
    cfg.MODEL.BACKBONE.NAME = "build_sgr_backbone"
    cfg.MODEL.SGR.BACKBONE_NAME = "build_timm_backbone"
    assert build_backbone(cfg).reasoning["res5"].in_channels == 320


@pytest.mark.parametrize(
    ("image_format", "mean", "std", "words"),
    [
        ("RGB", [127.0, 127.0, 127.0], [128.0, 128.0, 128.0], None),
        ("RGB", [123.675, 116.28, 103.53], [128.0] * 3, r"PIXEL_MEAN \[127.5, 127.5, 127.5\],"),
        ("RGB", [127.5] * 3, [58.395, 57.12, 57.375], r"with MODEL.PIXEL_STD \[127.5, 12"),
        ("BGR", [127.5] * 3, [127.5] * 3, r"INPUT.FORMAT RGB, the config has INPUT.FORMAT BGR"),
    ],
)
def test_other_pixels_are_warned_of(image_format, mean, std, words, cfg, caplog):
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = image_format, mean, std
    cfg.MODEL.WEIGHTS = ""
    build_backbone(cfg)
    assert not caplog.text  # random weights depend on nothing
    cfg.MODEL.WEIGHTS = "weights.pth"
    build_backbone(cfg)
    if words is None:
        assert not caplog.text
    else:
        assert re.search(words, caplog.text)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet_50", {}, "no model 'resnet_50'.*did you mean resnet50"),
        ("zzzz", {}, "no model 'zzzz'.*timm.list_models"),
        ("hf-hub:stranger/model", {}, "MODEL.TIMM.NAME.*would fetch.*in MODEL.WEIGHTS"),
        ("local-dir:model", {}, "MODEL.TIMM.NAME.*would fetch or read.*in MODEL.WEIGHTS"),
        ("vit_tiny_patch16_224", {}, "strides .16, 16.*hierarchical"),
        (SWIN, {}, "no image of 64 x 96.*strict_img_size: False"),
        ("pvt_v2_b0", {"output_stride": 16}, "cannot build.*output_stride 16.*unexpected"),
        (
            LITE0,
            {"output_stride": 24},
            r"output_stride \(.*OUTPUT_STRIDE\) is 24; .* 8, 16 or 32",
        ),
        (
            LITE0,
            {"out_features": ["res6"]},
            r"out_features .* is \['res6'\].*has: res1, res2",
        ),
        (LITE0, {"out_features": []}, r"out_features \(.*OUT_FEATURES\) is \[\]"),
        (LITE0, {"norm": "GN"}, r"norm \(.*NORM\) is 'GN'; known: '', 'BN'"),
        (
            LITE0,
            {"drop_path_rate": 1.0},
            r"drop_path_rate \(.*DROP_PATH_RATE\) is 1.0; it must be in \[0, 1\)",
        ),
    ],
)
def test_what_cannot_be(name, options, words):
    with pytest.raises(ValueError, match=words):
        TimmBackbone(name, **options)


def test_without_timm(monkeypatch, cfg):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_backbone(cfg)


def test_exports_with_any_batch():
    backbone = TimmBackbone(LITE0, output_stride=16).eval()
    batch = torch.export.Dim("batch")
    images = torch.rand(2, 3, 64, 96)
    program = torch.export.export(backbone, (images,), dynamic_shapes=({0: batch},))
    for size in (1, 3):
        images = torch.rand(size, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), backbone(images))
