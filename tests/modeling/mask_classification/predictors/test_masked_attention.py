import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sgr.modeling.mask_classification import MaskedAttentionPredictor
from sgr.modeling.mask_classification.predictors.masked_attention import MaskedAttention

OPTIONS = {
    "num_classes": 7,
    "hidden_dim": 32,
    "num_queries": 10,
    "num_heads": 4,
    "feedforward_dim": 64,
    "decoder_layers": 4,
    "mask_dim": 32,
    "mask_stride": 4,
}


def _predictor(*in_channels, **options):
    torch.manual_seed(0)
    return MaskedAttentionPredictor(in_channels or (32, 32, 32), **{**OPTIONS, **options})


def _inputs(*in_channels):
    generator = torch.Generator().manual_seed(1)
    sizes = ((3, 4), (6, 8), (12, 16))
    features = [
        torch.randn(2, channels, *size, generator=generator)
        for channels, size in zip(in_channels or (32, 32, 32), sizes)
    ]
    return features, torch.randn(2, 32, 24, 32, generator=generator)


def _literal(predictor, features, mask_features):
    """Every layer's prediction in full size, its masks resized for the next one, head by head."""
    position = predictor.query_embed.weight[None]
    queries = predictor.query_feat.weight[None].repeat(len(mask_features), 1, 1)
    outputs = []

    def predict():
        state = predictor.decoder_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", predictor.mask_embed(state), mask_features)
        outputs.append({"pred_logits": predictor.class_embed(state), "pred_masks": masks})

    def residual(block, update):
        if block.pre_norm:
            return queries + update(block.norm(queries))
        return block.norm(queries + update(queries))

    predict()
    for number in range(len(predictor.transformer_ffn_layers)):
        level = number % len(features)
        feature = features[level]
        value = predictor.input_proj[level](feature).flatten(2).transpose(1, 2)
        value = value + predictor.level_embed.weight[level]
        key = value + predictor.position_embedding(feature).flatten(2).transpose(1, 2)
        masks = F.interpolate(
            outputs[-1]["pred_masks"], feature.shape[-2:], mode="bilinear", align_corners=False
        )
        blocked = masks.flatten(2).sigmoid() < 0.5
        for image in blocked:
            for query in image:
                if query.all():
                    query[:] = False
        block = predictor.transformer_cross_attention_layers[number]
        attention = nn.MultiheadAttention(32, 4, batch_first=True)
        attention.load_state_dict(block.multihead_attn.state_dict())
        queries = residual(
            block,
            lambda x: attention(
                x + position, key, value, attn_mask=blocked.repeat_interleave(4, dim=0)
            )[0],
        )
        block = predictor.transformer_self_attention_layers[number]
        queries = residual(block, lambda x: block.self_attn(x + position, x + position, x)[0])
        block = predictor.transformer_ffn_layers[number]
        queries = residual(block, lambda x: block.linear2(block.linear1(x).relu()))
        predict()
    return outputs


def test_attention_is_that_of_torch():
    ours = MaskedAttention(16, 4)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    allowed = torch.rand(2, 5, 7) > 0.5
    allowed[:, :, 0] = True
    expected = theirs(query, key, value, attn_mask=~allowed.repeat_interleave(4, dim=0))[0]
    torch.testing.assert_close(ours(query, key, value, allowed), expected)


@pytest.mark.parametrize("options", [{}, {"pre_norm": True}, {"decoder_layers": 1}])
@pytest.mark.parametrize("in_channels", [(32, 32, 32), (24, 32, 16), (24, 24)])
def test_against_the_literal_predictor(options, in_channels):
    predictor = _predictor(*in_channels, **options)
    features, mask_features = _inputs(*in_channels)
    # Layers see masks of all kinds: a prediction that is empty everywhere among them.
    mask_features[1] = (
        mask_features[1].abs() * -predictor.mask_embed.layers[-1].bias.sign()[:, None, None]
    )
    with torch.no_grad():
        outputs = predictor(features, mask_features)
        expected = _literal(predictor, features, mask_features)
    ours = [*outputs["aux_outputs"], outputs]
    assert len(ours) == options.get("decoder_layers", 4) + 1
    for layer, literal in zip(ours, expected, strict=True):
        for key in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(layer[key], literal[key], atol=1e-4, rtol=1e-4)


def test_a_query_with_an_empty_mask_attends_everywhere():
    predictor = _predictor(decoder_layers=1).eval()
    features, mask_features = _inputs()
    nn.init.zeros_(predictor.mask_embed.layers[-1].weight)
    nn.init.ones_(predictor.mask_embed.layers[-1].bias)
    with torch.no_grad():
        everything = predictor(features, mask_features.abs())
        nothing = predictor(features, -mask_features.abs())
    assert (everything["pred_masks"] > 0).all() and (nothing["pred_masks"] < 0).all()
    torch.testing.assert_close(everything["pred_logits"], nothing["pred_logits"])


def test_reference(mask2former_reference):
    arrays = mask2former_reference
    predictor = _predictor()
    predictor.load_state_dict(
        {
            name.removeprefix("state.predictor."): value
            for name, value in arrays.items()
            if name.startswith("state.predictor.")
        }
    )
    features = [arrays[f"out.pixel_decoder.multi_scale{level}"] for level in range(3)]
    with torch.no_grad():
        outputs = predictor(features, arrays["out.pixel_decoder.mask_features"])
    assert len(outputs["aux_outputs"]) == 4
    for number, layer in enumerate([outputs, *outputs["aux_outputs"]]):
        prefix = "out" if number == 0 else f"out.aux{number - 1}"
        for key in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(layer[key], arrays[f"{prefix}.{key}"], atol=1e-5, rtol=1e-5)


def test_evaluation_predicts_once():
    predictor, inputs = _predictor(), _inputs()
    with torch.no_grad():
        training, evaluation = predictor.train()(*inputs), predictor.eval()(*inputs)
        predictor.deep_supervision = False
        assert "aux_outputs" not in predictor.train()(*inputs)
    assert len(training.pop("aux_outputs")) == 4
    torch.testing.assert_close(evaluation, {key: training[key] for key in evaluation})


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_parameter_learns(pre_norm):
    predictor = _predictor(24, 24, 24, pre_norm=pre_norm, dropout=0.1)
    outputs = predictor(*_inputs(24, 24, 24))
    made = [
        layer[key]
        for layer in (outputs, *outputs["aux_outputs"])
        for key in ("pred_logits", "pred_masks")
    ]
    sum((each * torch.randn_like(each)).sum() for each in made).backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_than_scales(layers):
    """Distributed training stops at parameters without a gradient."""
    predictor = _predictor(24, 16, 24, decoder_layers=layers)
    outputs = predictor(*_inputs(24, 16, 24))
    sum((outputs[key] ** 2).sum() for key in ("pred_logits", "pred_masks")).backward()
    assert all(parameter.grad is not None for parameter in predictor.parameters())
    assert f"input_proj.{layers - 1}.weight" in predictor.state_dict()


def test_no_gradient_through_the_attention_masks():
    """With the last layer's prediction only, the mask features learn from its product alone."""
    predictor = _predictor(deep_supervision=False)
    features, mask_features = _inputs()
    mask_features.requires_grad_()
    outputs = predictor(features, mask_features)
    grad = torch.autograd.grad(outputs["pred_logits"].sum(), mask_features, allow_unused=True)
    assert grad == (None,)


@pytest.mark.parametrize("enforce", [False, True])
def test_input_convolutions_only_where_needed(enforce):
    names = _predictor(enforce_input_proj=enforce).state_dict()
    expected = {f"input_proj.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert {name for name in names if "input_proj" in name} == (expected if enforce else set())


def test_the_queries_first_name():
    predictor = _predictor()
    state = predictor.state_dict()
    state["static_query.weight"] = torch.rand(10, 32)
    del state["query_feat.weight"]
    predictor.load_state_dict(state)
    assert torch.equal(predictor.query_feat.weight, state["static_query.weight"])


def test_query_masks_as_regions():
    predictor = _predictor().eval()
    outputs = predictor(*_inputs())
    regions = predictor.concept_regions(outputs)
    assert regions.logits is outputs["pred_masks"] and regions.stride == 4
    assert predictor.supervised_concepts is False


def test_autocast():
    predictor, inputs = _predictor().eval(), _inputs()
    with torch.no_grad():
        exact = predictor(*inputs)["pred_masks"]
        with torch.autocast("cpu", torch.bfloat16):
            outputs = predictor(*inputs)
    assert outputs["pred_masks"].dtype == torch.bfloat16
    assert outputs["pred_masks"].isfinite().all()
    assert (outputs["pred_masks"] - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_user_mistakes():
    with pytest.raises(ValueError, match="at least 1 layer, got 0; .*DEC_LAYERS"):
        _predictor(decoder_layers=0)
    with pytest.raises(ValueError, match="5 heads .*NHEADS.* do not divide 32 .*HIDDEN_DIM"):
        _predictor(num_heads=5)
    with pytest.raises(
        ValueError, match="num_queries .*NUM_OBJECT_QUERIES. must be at least 1, got 0"
    ):
        _predictor(num_queries=0)
    features, mask_features = _inputs()
    with pytest.raises(ValueError, match="reads 3 scales, but got 2"):
        _predictor()(features[:2], mask_features)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype):
    predictor, (features, mask_features) = _predictor().eval(), _inputs()
    with torch.no_grad():
        exact = predictor(features, mask_features)["pred_logits"]
        predictor.cuda()
        inputs = [feature.cuda() for feature in features], mask_features.cuda()
        logits = predictor(*inputs)["pred_logits"].cpu()
    torch.testing.assert_close(logits, exact, atol=1e-3, rtol=0)
    with torch.autocast("cuda", dtype):
        outputs = predictor.train()(*inputs)
        sum(o["pred_masks"].float().square().mean() for o in outputs["aux_outputs"]).backward()
    assert all(o["pred_masks"].isfinite().all() for o in outputs["aux_outputs"])
