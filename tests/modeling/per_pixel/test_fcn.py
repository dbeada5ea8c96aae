import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch.nn import functional as F

import sgr
from sgr.engine.solver import parameter_groups
from sgr.modeling.per_pixel import FCNHead
from sgr.modeling.reasoning import SemanticGlobalReasoning


def test_is_convolution_norm_relu_and_classifier(input_shape, features):
    head = FCNHead(input_shape, in_features=["res3"], num_classes=5, conv_dim=16, norm="BN").eval()
    assert head.conv.weight.shape == (16, 12, 3, 3)
    y = F.conv2d(features["res3"], head.conv.weight, padding=1)
    y = F.conv2d(head.conv.norm(y).clamp_min(0), head.predictor.weight, head.predictor.bias)
    expected = F.interpolate(y, scale_factor=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features)[0], expected)


def test_reasoning_lies_between_convolution_and_classifier(input_shape, features):
    reasoning = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=8
    )
    head = FCNHead(
        input_shape,
        in_features=["res3"],
        num_classes=5,
        conv_dim=16,
        norm="BN",
        reasoning=reasoning,
    ).eval()
    with sgr.record_concepts(head) as record, torch.no_grad():
        logits, _ = head(features)
        expected = head.predictor(reasoning(head.conv(features["res3"]))[0]).logits
    assert record.keys() == {"reasoning"}
    assert record["reasoning"].logits.shape == (2, 6, 8, 12) and record["reasoning"].stride == 8
    torch.testing.assert_close(
        logits, F.interpolate(expected, scale_factor=8, mode="bilinear", align_corners=False)
    )


def test_reasoning_from_the_config(input_shape, cfg):
    assert FCNHead(cfg, input_shape).reasoning is None
    cfg.MODEL.SEM_SEG_HEAD.REASONING = True
    cfg.MODEL.SGR.IN_FEATURES = ["nowhere"]  # that is for backbones
    reasoning = FCNHead(cfg, input_shape).reasoning
    assert (reasoning.in_channels, reasoning.stride, reasoning.num_concepts) == (16, 8, 6)


def test_parameter_names():
    """Of checkpoints: those with and without reasoning differ in nothing else."""
    shapes = {"res5": ShapeSpec(channels=4, stride=8)}
    options = {"in_features": ["res5"], "num_classes": 3, "conv_dim": 8, "norm": ""}
    plain = FCNHead(shapes, **options)
    names = {"conv.weight", "conv.bias", "predictor.weight", "predictor.bias"}
    assert set(plain.state_dict()) == names
    with_reasoning = FCNHead(
        shapes, reasoning=SemanticGlobalReasoning(8, num_concepts=4), **options
    )
    extra = set(with_reasoning.state_dict()) - names
    assert extra and all(name.startswith("reasoning.") for name in extra)


def dilated_resnet(cfg, **head):
    """The paper's Dil-FCN R101 on COCO-Stuff-10K, without weights."""
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.STEM_TYPE, resnet.STEM_OUT_CHANNELS = 101, "deeplab", 128
    resnet.RES4_DILATION, resnet.RES5_DILATION, resnet.STRIDE_IN_1X1 = 2, 4, False
    resnet.OUT_FEATURES, resnet.NORM = ["res5"], "BN"
    head = {"NAME": "FCNHead", "IN_FEATURES": ["res5"], "CONVS_DIM": 512, **head}
    for key, value in head.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return build_model(cfg)


def test_costs_what_the_paper_says(cfg):
    """Table a: 224 GFLOPs at 512 x 512; nothing of it depends on the cells but linearly."""
    model = dilated_resnet(cfg, NUM_CLASSES=171).eval()
    gflops = 0
    with torch.no_grad():
        for part, inputs in [
            (model.backbone, torch.zeros(1, 3, 64, 64)),
            (model.sem_seg_head, {"res5": torch.zeros(1, 2048, 8, 8)}),
        ]:
            flops = FlopCountAnalysis(part, (inputs,))
            flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            gflops += flops.total() / 1e9
    assert gflops * 64 == pytest.approx(224, rel=0.02)


def test_sgr_in_the_head_stays_within_its_budget():
    """Table a: 12 GFLOPs at 512 x 512; a literal module has 10.74."""
    module = SemanticGlobalReasoning(512, stride=8).eval()
    with torch.no_grad():
        flops = FlopCountAnalysis(module, torch.zeros(1, 512, 64, 64))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert flops.total() / 1e9 < 8.8


def test_reasoning_in_the_head_has_the_heads_rate(cfg):
    cfg.MODEL.SEM_SEG_HEAD.REASONING = True
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "SemanticSegmentor", "FCNHead"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    model = build_model(cfg)
    rates = {id(p): group["lr"] for group in parameter_groups(cfg, model) for p in group["params"]}
    assert rates[id(model.sem_seg_head.reasoning.concepts.weight)] == cfg.SOLVER.BASE_LR
    assert rates[id(model.sem_seg_head.conv.weight)] == cfg.SOLVER.BASE_LR
    assert rates[id(model.backbone.res3[0].conv1.weight)] == pytest.approx(0.1 * cfg.SOLVER.BASE_LR)
