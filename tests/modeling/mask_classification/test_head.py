import pytest
import torch
from detectron2.config import get_cfg

from sgr.config import add_sgr_config
from sgr.modeling.mask_classification import MaskClassificationHead, TransformerPredictor


def _config(**options):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 10
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    for key, value in options.items():
        (cfg.MODEL.MASK_FORMER if key in cfg.MODEL.MASK_FORMER else cfg.MODEL.SEM_SEG_HEAD)[key] = (
            value
        )
    return cfg


def test_reference(head, reference, reference_outputs):
    head.load_state_dict(
        {k.removeprefix("state."): v for k, v in reference.items() if k.startswith("state.")}
    )
    features = {k.removeprefix("in."): v for k, v in reference.items() if k.startswith("in.")}
    with torch.no_grad():
        outputs = head.train()(features)
    for ours, theirs in zip(
        [outputs, *outputs["aux_outputs"]],
        [reference_outputs, *reference_outputs["aux_outputs"]],
        strict=True,
    ):
        for key in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-5)


def test_parameters_of_the_first_checkpoints(head):
    """They kept the pixel decoder's parameters in the head itself."""
    expected = {name: torch.rand_like(value) for name, value in head.state_dict().items()}
    old = {f"head.{name.removeprefix('pixel_decoder.')}": v for name, v in expected.items()}
    torch.nn.ModuleDict({"head": head}).load_state_dict(old)
    for name, value in head.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_unknown_parameters_are_still_reported(head):
    state = head.state_dict()
    state["predictor.surplus"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="predictor.surplus"):
        head.load_state_dict(state)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("in_feature", ["res4", "transformer_encoder", "pixel_embedding"])
def test_what_the_predictor_may_read(input_shape, features, in_feature, pre_norm):
    head = MaskClassificationHead(
        _config(
            PIXEL_DECODER_NAME="TransformerFPNPixelDecoder",
            TRANSFORMER_ENC_LAYERS=1,
            TRANSFORMER_IN_FEATURE=in_feature,
            PRE_NORM=pre_norm,
        ),
        input_shape,
    )
    outputs = head(features)
    assert outputs["pred_logits"].shape == (2, 10, 8)
    assert outputs["pred_masks"].shape == (2, 10, 16, 24)
    assert len(outputs["aux_outputs"]) == 1
    loss = sum(o.square().mean() for o in (outputs["pred_logits"], outputs["pred_masks"]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_unknown_feature_to_read(input_shape):
    with pytest.raises(ValueError, match="'transformer_encoder'; .*'pixel_embedding', 'res2'"):
        MaskClassificationHead(_config(TRANSFORMER_IN_FEATURE="transformer_encoder"), input_shape)


def test_no_class(input_shape):
    with pytest.raises(ValueError, match=r"num_classes \(.*NUM_CLASSES\) is 0"):
        MaskClassificationHead(_config(NUM_CLASSES=0), input_shape)


@pytest.mark.parametrize(
    "name, in_feature, message",
    [
        ("Surplus", "res5", "'Surplus'; .*MaskedAttentionPredictor, TransformerPredictor"),
        ("TransformerPredictor", "multi_scale_pixel_decoder", "must be one of"),
        ("MaskedAttentionPredictor", "res5", "reads 'multi_scale_pixel_decoder'.* is 'res5'"),
    ],
)
def test_predictor_and_features_must_fit(input_shape, name, in_feature, message):
    cfg = _config(TRANSFORMER_DECODER_NAME=name, TRANSFORMER_IN_FEATURE=in_feature)
    with pytest.raises(ValueError, match=message):
        MaskClassificationHead(cfg, input_shape)


def test_evaluation_leaves_auxiliary_outputs_out(head, features):
    with torch.no_grad():
        training, evaluation = head.train()(features), head.eval()(features)
    assert len(training.pop("aux_outputs")) == 2
    torch.testing.assert_close(evaluation, {key: training[key] for key in evaluation})


def test_without_deep_supervision(input_shape, features):
    outputs = MaskClassificationHead(_config(DEEP_SUPERVISION=False), input_shape)(features)
    assert "aux_outputs" not in outputs


@pytest.mark.parametrize("enforce", [False, True])
def test_input_convolution_only_where_needed(enforce):
    predictor = TransformerPredictor(
        256, num_classes=2, decoder_layers=1, enforce_input_proj=enforce
    )
    assert any(name.startswith("input_proj") for name in predictor.state_dict()) == enforce


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": 5}, "5 heads .*NHEADS.* do not divide 32 .*HIDDEN_DIM"),
        (
            {"num_queries": 0},
            r"num_queries \(MODEL.*NUM_OBJECT_QUERIES\) must be at least 1, got 0",
        ),
    ],
)
def test_sizes_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerPredictor(32, num_classes=7, hidden_dim=32, **options)


def test_query_masks_as_regions(input_shape, features):
    head = MaskClassificationHead(_config(), input_shape)
    outputs = head(features)
    regions = head.predictor.concept_regions(outputs)
    assert regions.logits is outputs["pred_masks"]
    assert regions.stride == 4 and regions.tokens is None
    assert head.predictor.supervised_concepts is False


def test_autocast(head, features):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = head.eval()(features)
    with torch.no_grad():
        exact = head(features)
    assert outputs["pred_masks"].dtype == torch.bfloat16
    assert (outputs["pred_masks"] - exact["pred_masks"]).abs().max() < 0.1 * exact[
        "pred_masks"
    ].abs().max()
