"""What all per-pixel heads do alike."""

import pytest
import torch
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from foreign import tiny_inputs
from sgr.modeling.per_pixel import (
    AnySizeDeepLabV3Head,
    CrossEntropyLoss,
    FCNHead,
    HardPixelMiningLoss,
    UperNetHead,
)
from sgr.modeling.reasoning import SemanticGlobalReasoning

IN_FEATURES = {
    AnySizeDeepLabV3Head: ["res3"],
    FCNHead: ["res3"],
    UperNetHead: ["res5", "res3", "res4", "res2"],
}
heads = pytest.mark.parametrize("head_class", IN_FEATURES)


def build(head_class, input_shape, **options):
    options = {"in_features": IN_FEATURES[head_class], "num_classes": 5, "norm": "BN", **options}
    width = "aspp_channels" if head_class is AnySizeDeepLabV3Head else "conv_dim"
    return head_class(input_shape, **{width: 16, **options})


@heads
def test_no_class(head_class, input_shape):
    with pytest.raises(ValueError, match=r"num_classes \(.*NUM_CLASSES\) is 0"):
        build(head_class, input_shape, num_classes=0)


@heads
def test_logits_cover_the_image(head_class, input_shape, features):
    head = build(head_class, input_shape).eval()
    logits, losses = head(features)
    # Both finest strides, 4 and 8, cover 61 x 94 pixels by 64 x 96.
    assert logits.shape == (2, 5, 64, 96)
    assert losses == {} and head.ignore_value == 255


@heads
@pytest.mark.parametrize("aux", ["", "res4"])
def test_learns_with_every_parameter(head_class, aux, input_shape, features, labels):
    head = build(head_class, input_shape, aux_in_feature=aux, aux_channels=16)
    result, losses = head(features, labels)
    assert result is None
    assert losses.keys() == {"loss_sem_seg"} | ({"loss_sem_seg_aux"} if aux else set())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@heads
def test_weights_of_the_losses(head_class, input_shape, features, labels):
    options = {"aux_in_feature": "res4", "aux_channels": 16, "dropout": 0.0}
    head = build(head_class, input_shape, **options, norm="")
    losses = head(features, labels)[1]
    weighted = build(head_class, input_shape, **options, norm="", loss_weight=3, aux_loss_weight=2)
    weighted.load_state_dict(head.state_dict())
    expected = {"loss_sem_seg": losses["loss_sem_seg"] * 3}
    expected["loss_sem_seg_aux"] = losses["loss_sem_seg_aux"] / 0.4 * 2
    torch.testing.assert_close(weighted(features, labels)[1], expected)
    # And the loss is the one of what evaluation puts out.
    logits = head.eval()(features)[0]
    expected = CrossEntropyLoss(5)(logits, labels, 1)["loss_sem_seg"]
    torch.testing.assert_close(losses["loss_sem_seg"], expected)


@heads
def test_under_autocast(head_class, input_shape, features, labels):
    head = build(head_class, input_shape, aux_in_feature="res4", aux_channels=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head(features, labels)[1]
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@heads
def test_all_ignored(head_class, input_shape, features, labels):
    head = build(head_class, input_shape, aux_in_feature="res4", aux_channels=16)
    losses = head(features, torch.full_like(labels, 255))[1]
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert not any(parameter.grad.any() for parameter in head.parameters())


@heads
def test_options_come_from_the_config(head_class, input_shape, cfg):
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.IN_FEATURES = head_class.__name__, IN_FEATURES[head_class]
    head.DROPOUT = head.ASPP_DROPOUT = 0.25
    head.LOSS_TYPE, head.IGNORE_VALUE, head.LOSS_WEIGHT = "hard_pixel_mining", 9, 2.0
    head.AUX_IN_FEATURE, head.AUX_CHANNELS, head.AUX_LOSS_WEIGHT = "res5", 24, 0.5
    head.ASPP_CHANNELS = 16
    built = SEM_SEG_HEADS_REGISTRY.get(head.NAME)(cfg, input_shape)
    assert type(built) is head_class and isinstance(built.dropout, nn.Dropout2d)
    assert built.dropout.p == 0.25 and built.predictor.weight.shape == (5, 16, 1, 1)
    assert type(built.loss) is HardPixelMiningLoss and built.loss.ignore_value == 9
    assert (built.ignore_value, built.loss_weight, built.aux_loss_weight) == (9, 2.0, 0.5)
    assert built.aux_predictor[0].weight.shape == (24, 24, 3, 3)
    assert built.aux_predictor[0].bias is None  # it has a norm
    assert (built.common_stride, built.aux_stride) == (4 if head_class is UperNetHead else 8, 32)


class TestMistakes:
    @heads
    def test_unknown_feature(self, head_class, input_shape):
        known = r"the backbone gives \['res2', 'res3', 'res4', 'res5'\]"
        with pytest.raises(ValueError, match=rf"IN_FEATURES\) asks for \['p6'\].*{known}"):
            build(head_class, input_shape, in_features=["p6"])
        with pytest.raises(ValueError, match=r"SEM_SEG_HEAD.AUX_IN_FEATURE\) asks for \['p3'\]"):
            build(head_class, input_shape, aux_in_feature="p3")
        with pytest.raises(ValueError, match=r"in_features \(.*IN_FEATURES\) asks for nothing"):
            build(head_class, input_shape, in_features=[])

    @pytest.mark.parametrize("head_class", [AnySizeDeepLabV3Head, FCNHead])
    def test_more_than_one_feature(self, head_class, input_shape):
        with pytest.raises(ValueError, match=r"reads one feature, .* names \['res3', 'res4'\]"):
            build(head_class, input_shape, in_features=["res3", "res4"])

    @pytest.mark.parametrize(
        ("key", "known"),
        [
            ("LOSS_TYPE", "cross_entropy, hard_pixel_mining"),
            ("CLASSIFIER_NAME", "LinearClassifier"),
        ],
    )
    @heads
    def test_unknown_part(self, head_class, key, known, input_shape, cfg):
        cfg.MODEL.SEM_SEG_HEAD[key] = "dice"
        with pytest.raises(ValueError, match=f"SEM_SEG_HEAD.{key} is 'dice'; .*{known}"):
            head_class(cfg, input_shape)

    @heads
    def test_training_without_labels(self, head_class, input_shape, features):
        with pytest.raises(ValueError, match="needs labels .* 'semantic_concept'"):
            build(head_class, input_shape)(features)

    @pytest.mark.parametrize("head_class", [AnySizeDeepLabV3Head, UperNetHead])
    def test_reasoning_in_a_head_that_has_none(self, head_class, input_shape, cfg):
        cfg.MODEL.SEM_SEG_HEAD.REASONING = True
        with pytest.raises(
            ValueError, match=f"{head_class.__name__} has no reasoning module inside"
        ):
            head_class(cfg, input_shape)

    def test_reasoning_of_other_channels(self, input_shape):
        with pytest.raises(ValueError, match="takes 8 channels, .* makes 16 .*CONVS_DIM"):
            build(FCNHead, input_shape, reasoning=SemanticGlobalReasoning(8, num_concepts=4))

    def test_unknown_reasoning(self, input_shape, cfg):
        cfg.MODEL.SEM_SEG_HEAD.REASONING = True
        cfg.MODEL.SGR.NAME = "Telepathy"
        with pytest.raises(ValueError, match="MODEL.SGR.NAME is 'Telepathy'"):
            FCNHead(cfg, input_shape)


def segmentor(cfg, name, backbone, **head):
    """A ConceptSemanticSegmentor on a small ResNet."""
    cfg.MODEL.META_ARCHITECTURE = "ConceptSemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet = cfg.MODEL.RESNETS
    resnet.STEM_TYPE, resnet.NORM = "basic", "BN"
    resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS, resnet.WIDTH_PER_GROUP = 8, 16, 8
    cfg.MODEL.SEM_SEG_HEAD.NAME = name
    for key, value in head.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return build_model(cfg)


def dilate(cfg):
    resnet = cfg.MODEL.RESNETS
    resnet.RES4_DILATION, resnet.RES5_DILATION, resnet.OUT_FEATURES = 2, 4, ["res4", "res5"]
    cfg.MODEL.SGR.BACKBONE_NAME = "build_resnet_deeplab_backbone"


def fcn(cfg):
    dilate(cfg)
    head = {"IN_FEATURES": ["res5"], "REASONING": True, "AUX_IN_FEATURE": "res4"}
    return segmentor(cfg, "FCNHead", "build_resnet_deeplab_backbone", **head)


def deeplab_v3(cfg):
    dilate(cfg)
    head = {"IN_FEATURES": ["res5"], "ASPP_CHANNELS": 16, "ASPP_DILATIONS": [2, 4, 6]}
    return segmentor(cfg, "AnySizeDeepLabV3Head", "build_sgr_backbone", **head)


def uper_net(cfg):
    names = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = names
    head = {"IN_FEATURES": names, "AUX_IN_FEATURE": "res4", "AUX_CHANNELS": 16}
    return segmentor(cfg, "UperNetHead", "build_sgr_resnet_backbone", **head)


SIZES = ((61, 94), (70, 50))


@pytest.mark.parametrize(
    ("framework", "stride", "place"),
    [
        (fcn, 8, "sem_seg_head.reasoning"),
        (deeplab_v3, 8, "backbone.reasoning.res5"),
        (uper_net, 32, "backbone.reasoning.res5"),
    ],
)
class TestFramework:
    def test_concepts_are_supervised(self, framework, stride, place, cfg):
        model, batch = framework(cfg), tiny_inputs(SIZES)
        losses = model(batch)
        concept = {f"loss_concept_{term}" for term in ("focal", "dice", "cosine")}
        expected = concept | {"loss_sem_seg"}
        if framework is not deeplab_v3:
            expected.add("loss_sem_seg_aux")
        assert losses.keys() == expected
        sum(losses[name] for name in concept).backward()
        assert model.get_submodule(place).concepts.weight.grad.any()
        # In the head too, the backbone learns from them.
        assert model.backbone.stem.conv1.weight.grad.any()

    def test_regions_come_out(self, framework, stride, place, cfg):
        model, batch = framework(cfg).eval(), tiny_inputs(SIZES)
        batch[0].update(height=122, width=188)
        with torch.no_grad():
            outputs = model(batch)
        assert outputs[0]["sem_seg"].shape == (5, 122, 188)
        for (height, width), output in zip(SIZES, outputs):
            regions = output["concept_regions"]
            assert regions.stride == stride
            assert regions.logits.shape == (1, 6, -(-height // stride), -(-width // stride))

    def test_every_parameter_gets_a_gradient_under_ddp(
        self, framework, stride, place, cfg, tmp_path
    ):
        model, batch = framework(cfg), tiny_inputs(SIZES)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        try:
            # Without find_unused_parameters: an unused one would stop the second iteration.
            parallel = DistributedDataParallel(model)
            for _ in range(2):
                sum(parallel(batch).values()).backward()
        finally:
            torch.distributed.destroy_process_group()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_half_precision_training_with_reasoning_in_the_head(cfg):
    model, batch = fcn(cfg), tiny_inputs(SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_tokens_that_a_model_does_not_have(cfg):
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    model = segmentor(cfg, "FCNHead", "build_resnet_backbone", IN_FEATURES=["res4"]).eval()
    with pytest.raises(ValueError, match="no concept regions.*TEST.TOKENS.ENABLED to False"):
        model(tiny_inputs(SIZES))
