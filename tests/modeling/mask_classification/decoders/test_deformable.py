import logging
import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from sgr.config import add_sgr_config
from sgr.modeling.mask_classification import DeformablePixelDecoder, build_pixel_decoder

PREFIX = "sem_seg_head.pixel_decoder."
CHANNELS = {
    "R101": {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048},
    "swin-tiny": {"res2": 96, "res3": 192, "res4": 384, "res5": 768},
}


def _config(**head):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "DeformablePixelDecoder"
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 4
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 6
    for key, value in head.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return cfg


def _decoder(input_shape, **options):
    options = {
        "transformer_in_features": ["res3", "res4", "res5"],
        "conv_dim": 32,
        "mask_dim": 16,
        "num_layers": 2,
        "num_heads": 4,
        "feedforward_dim": 64,
    } | options
    return DeformablePixelDecoder(input_shape, **options)


def test_equals_the_reference(input_shape, mask2former_reference):
    decoder = _decoder(input_shape, mask_dim=32, feedforward_dim=1024).eval()
    prefix = "state.pixel_decoder."
    decoder.load_state_dict(
        {
            name.removeprefix(prefix): array
            for name, array in mask2former_reference.items()
            if name.startswith(prefix)
        }
    )
    features = {name: mask2former_reference[f"in.{name}"] for name in input_shape}
    with torch.no_grad():
        out = decoder(features)
    actual = {"mask_features": out.mask_features}
    actual |= {f"multi_scale{i}": each for i, each in enumerate(out.multi_scale_features)}
    assert len(actual) == 4
    for name, array in actual.items():
        expected = mask2former_reference[f"out.pixel_decoder.{name}"]
        torch.testing.assert_close(array, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(out.encoder_features, out.multi_scale_features[0])


@pytest.mark.parametrize("backbone", CHANNELS)
def test_parameters_are_those_of_the_checkpoints(shared, backbone):
    text = (shared / "reference" / f"mask2former_{backbone}_ade20k-150.keys.txt").read_text()
    expected = {
        name.removeprefix(PREFIX): tuple(map(int, re.findall(r"\d+", shape)))
        for name, shape in re.findall(r"^(\S+) (\(.*\))$", text, re.MULTILINE)
        if name.startswith(PREFIX)
    }
    input_shape = {
        name: ShapeSpec(channels=channels, stride=4 << i)
        for i, (name, channels) in enumerate(CHANNELS[backbone].items())
    }
    with torch.device("meta"):
        decoder = build_pixel_decoder(_config(), input_shape)
    assert type(decoder) is DeformablePixelDecoder
    actual = {name: tuple(array.shape) for name, array in decoder.state_dict().items()}
    assert expected and actual == expected


def test_maps_of_every_stride(input_shape, features):
    decoder = _decoder(input_shape)
    out = decoder(features)
    assert out.mask_features.shape == (2, 16, 16, 24)
    assert [each.shape for each in out.multi_scale_features] == [
        (2, 32, 2, 3),
        (2, 32, 4, 6),
        (2, 32, 8, 12),
    ]
    loss = sum(each.square().sum() for each in (out.mask_features, *out.multi_scale_features))
    loss.backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_images_do_not_see_each_other(input_shape, features):
    decoder = _decoder(input_shape).eval()
    both = decoder(features).mask_features
    single = decoder({name: each[1:] for name, each in features.items()}).mask_features
    torch.testing.assert_close(both[1:], single)


@pytest.mark.parametrize(
    "in_features, transformer_in_features, sizes, pyramid",
    [
        # Where the encoded features are fewer than three, the pyramid's follow.
        (["res2", "res3"], ["res3"], [(8, 12), (16, 24)], ["res2"]),
        (["res2", "res3"], ["res2", "res3"], [(8, 12), (16, 24)], []),
        (["res2", "res3", "res5"], ["res5"], [(2, 3), (8, 12), (16, 24)], ["res2", "res3"]),
        # Four features are encoded, of which three are given on.
        (
            ["res2", "res3", "res4", "res5"],
            ["res2", "res3", "res4", "res5"],
            [(2, 3), (4, 6), (8, 12)],
            [],
        ),
    ],
)
def test_other_features(
    input_shape, features, in_features, transformer_in_features, sizes, pyramid
):
    shapes = {name: input_shape[name] for name in reversed(in_features)}
    decoder = _decoder(shapes, transformer_in_features=transformer_in_features)
    assert decoder.pyramid_in_features == pyramid
    out = decoder(features)
    assert out.mask_features.shape == (2, 16, 16, 24)
    assert [each.shape[-2:] for each in out.multi_scale_features] == sizes
    assert decoder.output_channels["multi_scale_pixel_decoder"] == [32] * len(sizes)
    assert decoder.mask_stride == 4


def test_pyramid_ends_at_the_common_stride(input_shape, features, caplog):
    with caplog.at_level(logging.WARNING):
        decoder = _decoder(input_shape, transformer_in_features=["res4", "res5"], common_stride=8)
    assert decoder.pyramid_in_features == ["res3"]
    (message,) = caplog.messages
    assert "does not read res2" in message and "COMMON_STRIDE 8" in message
    assert decoder(features).mask_features.shape == (2, 16, 8, 12)


def test_odd_sizes(input_shape):
    """Strides of sizes that are no power of two times each other, as unpadded images give."""
    sizes = {"res2": (15, 21), "res3": (8, 11), "res4": (4, 6), "res5": (1, 2)}
    features = {
        name: torch.randn(1, shape.channels, *sizes[name]) for name, shape in input_shape.items()
    }
    out = _decoder(input_shape)(features)
    assert out.mask_features.shape[-2:] == (15, 21)
    assert [each.shape[-2:] for each in out.multi_scale_features] == [(1, 2), (4, 6), (8, 11)]


def test_autocast_changes_nothing(input_shape, features):
    decoder = _decoder(input_shape).eval()
    precise = decoder(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = decoder(features)
        of_coarse = decoder({name: each.bfloat16() for name, each in features.items()})
    for first, second in zip(
        (precise.mask_features, *precise.multi_scale_features),
        (other.mask_features, *other.multi_scale_features),
    ):
        assert torch.equal(first, second)
    assert of_coarse.mask_features.dtype == torch.float32
    halved = decoder.bfloat16()(features)
    assert halved.mask_features.dtype == torch.bfloat16
    assert halved.mask_features.isfinite().all()


def test_equal_strides_have_an_order(input_shape):
    """As the public code has it, whatever the seed of strings' hashes."""
    shapes = {
        name: ShapeSpec(channels=shape.channels, stride=16 if name > "res3" else shape.stride)
        for name, shape in input_shape.items()
    } | {"res6": ShapeSpec(channels=8, stride=16)}
    names = ["res3", "res6", "res4", "res5"]
    for asked in (names, names[::-1], sorted(names)):
        decoder = _decoder(shapes, transformer_in_features=asked)
        assert decoder.transformer_in_features == ["res6", "res5", "res4", "res3"]


class _Exported(torch.nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, res2, res3, res4, res5):
        out = self.decoder({"res2": res2, "res3": res3, "res4": res4, "res5": res5})
        return out.mask_features, *out.multi_scale_features


def test_exports_to_onnx(input_shape, features, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _Exported(_decoder(input_shape, num_layers=1)).eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        tuple(features.values()),
        tmp_path / "decoder.onnx",
        dynamo=True,
        verbose=False,
        input_names=list(features),
        dynamic_shapes=[{0: batch}] * 4,
    )
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    features = {name: torch.cat((each, each[:1])) for name, each in features.items()}
    outputs = session.run(None, {name: each.numpy() for name, each in features.items()})
    with torch.no_grad():
        expected = model(*features.values())
    for actual, each in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), each, rtol=1e-3, atol=1e-4)


def test_build_from_config(input_shape, features):
    cfg = _config(
        CONVS_DIM=32,
        MASK_DIM=16,
        TRANSFORMER_ENC_LAYERS=1,
        DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res4", "res5"],
        DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS=2,
        DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS=4,
    )
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.3
    decoder = build_pixel_decoder(cfg, input_shape)
    assert "DeformablePixelDecoder" in SEM_SEG_HEADS_REGISTRY
    (layer,) = decoder.transformer.encoder.layers
    assert layer.linear1.out_features == 1024 and layer.dropout.p == 0.3
    assert (layer.self_attn.num_levels, layer.self_attn.num_heads) == (2, 4)
    assert layer.self_attn.num_points == 2
    assert decoder(features).mask_features.shape == (2, 16, 16, 24)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"conv_dim": 48}, "CONVS_DIM.* is 48; it must be a multiple of 32"),
        ({"num_heads": 5}, "5 heads .*ENCODER_N_HEADS.* do not divide 32 channels .*CONVS_DIM"),
        ({"num_heads": 0}, "0 heads .*ENCODER_N_HEADS"),
        ({"num_points": 0}, "ENCODER_N_POINTS. must be at least 1, got 0"),
        ({"num_layers": 0}, "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS. must be at least 1, got 0"),
        ({"transformer_in_features": ["res3", "res6"]}, "got .*'res6'"),
        ({"transformer_in_features": []}, r"got \[\]"),
    ],
)
def test_sizes_that_make_no_sense(input_shape, options, message):
    with pytest.raises(ValueError, match=message):
        _decoder(input_shape, **options)


def test_a_single_feature(input_shape):
    with pytest.raises(ValueError, match=r"several strides, got \['res5'\]"):
        _decoder({"res5": input_shape["res5"]}, transformer_in_features=["res5"])
