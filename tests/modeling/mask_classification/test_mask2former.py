from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

import sgr
from sgr.modeling.mask_classification import (
    Mask2FormerSegmentor,
    MaskClassificationHead,
    PointMatcher,
    PointSetCriterion,
)

KEYS = (
    Path(__file__).resolve().parents[4]
    / "shared"
    / "reference"
    / "mask2former_R101_ade20k-150.keys.txt"
)
CONCEPT_LOSSES = {"loss_concept_focal", "loss_concept_dice", "loss_concept_cosine"}
QUERY_LOSSES = {
    f"loss_{kind}{suffix}"
    for kind in ("ce", "mask", "dice")
    for suffix in ("", "_0", "_1", "_2", "_3")
}


def _mask2former_config():
    cfg = get_cfg()
    sgr.add_sgr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "Mask2FormerSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "MaskClassificationHead"
    head.PIXEL_DECODER_NAME = "DeformablePixelDecoder"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    options = cfg.MODEL.MASK_FORMER
    options.TRANSFORMER_DECODER_NAME = "MaskedAttentionPredictor"
    options.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    options.DROPOUT = 0.0
    options.CLASS_WEIGHT, options.MASK_WEIGHT, options.DICE_WEIGHT = 2.0, 5.0, 4.0
    return cfg


def _shrink_head(cfg, *, classes, layers, feedforward, queries):
    head, options = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.CONVS_DIM = head.MASK_DIM = options.HIDDEN_DIM = 32
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = options.NHEADS = 4
    head.NORM, options.DEC_LAYERS = "GN", 5
    head.NUM_CLASSES, head.TRANSFORMER_ENC_LAYERS = classes, layers
    options.DIM_FEEDFORWARD, options.NUM_OBJECT_QUERIES = feedforward, queries


@pytest.fixture
def cfg():
    cfg = _mask2former_config()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    _shrink_head(cfg, classes=5, layers=1, feedforward=48, queries=8)
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 60
    cfg.MODEL.SGR.NUM_CONCEPTS = 6
    cfg.MODEL.SGR.TOKEN_DIM = 8
    cfg.MODEL.SGR.NUM_HEADS = 2
    cfg.MODEL.SGR.DIM_FEEDFORWARD = 16
    cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE = 4
    return cfg


def _batch(*labels, sizes=((64, 96), (50, 70))):
    """Images of unequal sizes, each with a mask per label, and with two components."""
    batch = []
    for (height, width), label in zip(sizes, labels):
        instances = Instances((height, width))
        instances.gt_classes = torch.tensor(label, dtype=torch.int64)
        instances.gt_masks = torch.rand(len(label), height, width) > 0.5
        batch.append(
            {
                "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
                "instances": instances,
                "component_map": torch.randint(-1, 2, (height, width), dtype=torch.int16),
                "component_classes": torch.arange(2),
            }
        )
    return batch


def _small_head_config():
    """The config of the reference."""
    cfg = _mask2former_config()
    _shrink_head(cfg, classes=7, layers=2, feedforward=64, queries=10)
    return cfg


def test_reference(mask2former_reference, input_shape):
    arrays = mask2former_reference
    head = MaskClassificationHead(_small_head_config(), input_shape)
    head.load_state_dict(
        {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    )
    features = {k.removeprefix("in."): v for k, v in arrays.items() if k.startswith("in.")}
    with torch.no_grad():
        outputs = head.train()(features)
    assert len(outputs["aux_outputs"]) == 4
    for number, layer in enumerate([outputs, *outputs["aux_outputs"]]):
        prefix = "out" if number == 0 else f"out.aux{number - 1}"
        for key in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(layer[key], arrays[f"{prefix}.{key}"], atol=1e-4, rtol=1e-4)


def test_parameters_are_those_of_the_public_model():
    if not KEYS.exists():
        pytest.skip("the reference names are not here")
    cfg = _mask2former_config()
    cfg.MODEL.RESNETS.DEPTH = 101
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 150
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 6
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 10
    head = "sem_seg_head."
    ours = {
        f"{name} {tuple(value.shape)}"
        for name, value in build_model(cfg).state_dict().items()
        if name.startswith(head)
    }
    public = {line for line in KEYS.read_text().strip().splitlines() if line.startswith(head)}
    assert ours == public - {line for line in public if "criterion" in line}


@pytest.mark.parametrize("labels", [([1, 4], [0]), ([], [3]), ([], []), ([0] * 9, [1])])
def test_training(cfg, labels):
    """Also without masks in an image, without any, and with more masks than queries."""
    model = build_model(cfg).train()
    assert isinstance(model, Mask2FormerSegmentor)
    losses = model(_batch(*labels))
    assert losses.keys() == QUERY_LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_mask"] > 0) == (losses["loss_dice_3"] > 0) == any(labels)
    sum(losses.values()).backward()
    missing = [name for name, each in model.named_parameters() if each.grad is None]
    assert not missing
    assert all(each.grad.isfinite().all() for each in model.parameters())


def test_criterion_from_config(cfg):
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 2.0
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.5
    criterion = build_model(cfg).criterion
    assert type(criterion) is PointSetCriterion and type(criterion.matcher) is PointMatcher
    assert criterion.weight_dict == {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 4.0}
    matcher = criterion.matcher
    assert (matcher.class_weight, matcher.mask_weight, matcher.dice_weight) == (2.0, 5.0, 4.0)
    assert criterion.num_points == matcher.num_points == 60
    assert criterion.oversample_ratio == 2.0 and criterion.importance_sample_ratio == 0.5
    assert criterion.empty_weight.tolist() == pytest.approx([1.0] * 5 + [0.1])


def test_evaluation(cfg):
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    model = build_model(cfg).eval()
    inputs = [{"image": each["image"]} for each in _batch([], [])]
    inputs[1].update(height=30, width=40)
    with torch.no_grad():
        results = model(inputs)
    assert [set(result) for result in results] == [{"sem_seg", "instances"}] * 2
    assert results[0]["sem_seg"].shape == (5, 64, 96)
    assert results[1]["sem_seg"].shape == (5, 30, 40)
    assert all(result["sem_seg"].isfinite().all() for result in results)
    assert len(results[0]["instances"]) == 7


def test_concept_supervision(cfg):
    """SGR on res5, the map that the pixel decoder's coarsest scale is made of."""
    cfg.MODEL.META_ARCHITECTURE = "ConceptMask2FormerSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_backbone"
    model = build_model(cfg).train()
    assert isinstance(model, Mask2FormerSegmentor)
    assert model.sem_seg_head.predictor.mask_stride == 4
    with EventStorage():
        losses = model(_batch([1, 4], [0]))
    assert losses.keys() == QUERY_LOSSES | CONCEPT_LOSSES
    sum(losses.values()).backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None]

    model.eval()
    with torch.no_grad():
        result = model(_batch([], []))[1]
    assert result.keys() >= {"sem_seg", "concept_regions"}
    assert result["concept_regions"].stride == 32
    assert result["concept_regions"].logits.shape == (1, 6, 2, 3)


def test_the_decoder_reads_the_enhanced_map(cfg):
    """The losses of the queries reach the reasoning module, whose output res5 is."""
    cfg.MODEL.META_ARCHITECTURE = "ConceptMask2FormerSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_backbone"
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    model = build_model(cfg).train()
    losses = model(_batch([1, 4], [0]))
    assert losses.keys() == QUERY_LOSSES
    sum(losses.values()).backward()
    gradients = [each.grad for each in model.backbone.reasoning.parameters()]
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients)


def test_query_masks_are_the_tokens_of_a_plain_model(cfg):
    cfg.MODEL.META_ARCHITECTURE = "ConceptMask2FormerSegmentor"
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    model = build_model(cfg).eval()
    with torch.no_grad():
        result = model(_batch([], []))[1]
    regions = result["concept_regions"]
    assert regions.stride == 4 and regions.logits.shape == (1, 8, 13, 18)


def test_any_subclass_can_be_supervised():
    class MyMask2Former(Mask2FormerSegmentor):
        pass

    assert sgr.supervise(MyMask2Former).__name__ == "ConceptMyMask2Former"
    for name in ("Mask2FormerSegmentor", "ConceptMask2FormerSegmentor"):
        assert name in META_ARCH_REGISTRY


def test_stride_of_the_masks(cfg, input_shape):
    """That of the finest feature which the pixel decoder reads."""
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 8
    head = MaskClassificationHead(cfg, input_shape)
    assert head.predictor.mask_stride == 8


def test_pixel_decoders_without_several_scales(cfg, input_shape):
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "FPNPixelDecoder"
    with pytest.raises(ValueError, match="TRANSFORMER_IN_FEATURE is 'multi_scale_pixel_decoder'"):
        MaskClassificationHead(cfg, input_shape)


def test_maskformers_predictor_reads_one_scale(cfg, input_shape):
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "TransformerPredictor"
    with pytest.raises(ValueError, match="TransformerPredictor .* reads one feature map, but"):
        MaskClassificationHead(cfg, input_shape)


@pytest.mark.parametrize("encoded, scales", [(["res4", "res5"], 3), (["res3", "res4"], 2)])
def test_other_scales(cfg, encoded, scales):
    """Where fewer than three features are encoded, the pyramid's maps follow."""
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res3", *encoded]
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = encoded
    model = build_model(cfg).train()
    assert model.sem_seg_head.predictor.level_embed.num_embeddings == scales
    assert model.sem_seg_head.predictor.mask_stride == 8
    assert model(_batch([1, 4], [0])).keys() == QUERY_LOSSES
