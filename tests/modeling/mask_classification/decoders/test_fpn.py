import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from sgr.config import add_sgr_config
from sgr.modeling.mask_classification import (
    FPNPixelDecoder,
    TransformerFPNPixelDecoder,
    build_pixel_decoder,
)


def _config(**head):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 16
    for key, value in head.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return cfg


def test_fpn_gives_mask_features_at_the_finest_stride(input_shape, features):
    decoder = FPNPixelDecoder(input_shape, conv_dim=32, mask_dim=16)
    out = decoder(features)
    assert out.mask_features.shape == (2, 16, 16, 24)
    assert out.encoder_features is None
    out.mask_features.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_transformer_fpn_encodes_the_coarsest_feature(input_shape, features):
    decoder = TransformerFPNPixelDecoder(
        input_shape, conv_dim=32, mask_dim=16, num_layers=2, num_heads=4, feedforward_dim=64
    )
    out = decoder(features)
    assert out.mask_features.shape == (2, 16, 16, 24)
    assert out.encoder_features.shape == (2, 32, 2, 3)
    out.mask_features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    # The coarsest convolution reads the encoder, not the backbone.
    assert decoder.layer_4.weight.shape == (32, 32, 3, 3)


def test_encoder_sees_the_whole_map(input_shape, features):
    """A change in one corner of the coarsest feature reaches the opposite one."""
    torch.manual_seed(0)
    decoder = TransformerFPNPixelDecoder(
        input_shape, conv_dim=32, mask_dim=16, num_layers=1, num_heads=4, feedforward_dim=64
    ).eval()
    before = decoder(features).encoder_features
    features["res5"][:, :, 0, 0] += 1
    after = decoder(features).encoder_features
    assert (after - before)[:, :, -1, -1].abs().max() > 1e-4


def test_transformer_fpn_parameter_names(input_shape):
    decoder = TransformerFPNPixelDecoder(input_shape, conv_dim=32, num_layers=1, num_heads=4)
    names = {name for name, _ in decoder.named_parameters()}
    assert {"input_proj.weight", "transformer.encoder.layers.0.self_attn.in_proj_weight"} <= names
    assert not any(name.startswith(("position", "adapter_4")) for name in names)


@pytest.mark.parametrize("norm, has_bias", [("GN", False), ("", True)])
def test_bias_takes_the_place_of_the_norm(input_shape, norm, has_bias):
    decoder = FPNPixelDecoder(input_shape, conv_dim=32, norm=norm)
    assert (decoder.layer_1.bias is not None) == has_bias


def test_order_of_the_features_does_not_matter(input_shape):
    shuffled = dict(reversed(input_shape.items()))
    assert FPNPixelDecoder(shuffled, conv_dim=32).in_features == ["res2", "res3", "res4", "res5"]


def test_one_feature_is_enough():
    decoder = FPNPixelDecoder({"c4": ShapeSpec(channels=8, stride=16)}, conv_dim=32, mask_dim=4)
    assert decoder({"c4": torch.randn(1, 8, 5, 7)}).mask_features.shape == (1, 4, 5, 7)


def test_odd_sizes(input_shape):
    """Strides of sizes that are no power of two times each other, as unpadded images give."""
    sizes = {"res2": (15, 21), "res3": (8, 11), "res4": (4, 6), "res5": (2, 3)}
    features = {
        name: torch.randn(1, shape.channels, *sizes[name]) for name, shape in input_shape.items()
    }
    decoder = FPNPixelDecoder(input_shape, conv_dim=32, mask_dim=16)
    assert decoder(features).mask_features.shape[-2:] == (15, 21)


def test_no_features():
    with pytest.raises(ValueError, match="at least one input feature"):
        FPNPixelDecoder({})


def test_heads_must_divide_the_channels(input_shape):
    with pytest.raises(ValueError, match="5 heads .*NHEADS.* do not divide 32 .*CONVS_DIM"):
        TransformerFPNPixelDecoder(input_shape, conv_dim=32, num_heads=5)


@pytest.mark.parametrize("name", ["FPNPixelDecoder", "TransformerFPNPixelDecoder"])
def test_build_from_config(input_shape, features, name):
    decoder = build_pixel_decoder(
        _config(PIXEL_DECODER_NAME=name, TRANSFORMER_ENC_LAYERS=1), input_shape
    )
    assert type(decoder).__name__ == name and name in SEM_SEG_HEADS_REGISTRY
    assert decoder(features).mask_features.shape == (2, 16, 16, 24)


def test_build_refuses_unknown_names(input_shape):
    with pytest.raises(ValueError, match="'BasePixelDecoder'.*try 'FPNPixelDecoder'"):
        build_pixel_decoder(_config(PIXEL_DECODER_NAME="BasePixelDecoder"), input_shape)
    with pytest.raises(ValueError, match=r"asks for \['res9'\]"):
        build_pixel_decoder(_config(IN_FEATURES=["res2", "res9"]), input_shape)
