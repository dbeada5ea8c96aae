import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from semask import FaPNPixelDecoder, MSFaPNPixelDecoder
from semask.feature_alignment import DeformableConv, FeatureAlignment


def shapes_of(config):
    return {
        name: ShapeSpec(channels=channels, stride=config["strides"][name])
        for name, channels in config["channels"].items()
    }


def build(kind, config):
    options = {"conv_dim": config["conv_dim"], "mask_dim": config["mask_dim"]}
    if kind == "fapn":
        return FaPNPixelDecoder(shapes_of(config), **options)
    return MSFaPNPixelDecoder(
        shapes_of(config),
        transformer_in_features=["res3", "res4", "res5"],
        num_layers=1,
        feedforward_dim=48,
        **options,
    )


@pytest.mark.parametrize(
    ("output", "top_down"), [("same_size", "top_down"), ("resized", "top_down_small")]
)
def test_public_alignment(reference, assert_near, output, top_down):
    data = reference("feature_align")
    module = FeatureAlignment(data.config["channels"])
    module.load_state_dict(data.group("state"))
    inputs = data.group("input")
    with torch.no_grad():
        result = module(inputs["lateral"], inputs[top_down])
    assert_near(result, data.group("output")[output])


@pytest.mark.parametrize("kind", ["fapn", "msfapn"])
def test_public_decoder(reference, assert_near, kind):
    """Outputs and gradients, also those of norms with two names."""
    data = reference(f"{kind}_head")
    decoder = build(kind, data.config).double().eval()
    state = data.group("state")
    decoder.load_state_dict(state)
    assert decoder.state_dict().keys() == state.keys()
    features = {
        name: value.double().requires_grad_() for name, value in data.group("input").items()
    }
    result = decoder(features)
    outputs = {"mask_features": result.mask_features}
    if kind == "msfapn":
        assert_near(result.encoder_features, data.group("output")["encoder_features"])
    outputs |= {f"multi_scale{i}": each for i, each in enumerate(result.multi_scale_features)}
    weights = data.group("weight")
    loss = 0
    for index, (name, value) in enumerate(outputs.items()):
        assert_near(value, data.group("output")[name])
        loss = loss + (value * weights[str(index)]).sum()
    loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in decoder.named_parameters(remove_duplicate=False)
    }
    gradients |= {f"input/{name}": value.grad for name, value in features.items()}
    expected = data.group("gradient")
    assert len(expected) > 25
    for name, value in expected.items():
        if name.startswith("input_proj.") and name.endswith(".0.bias"):
            # A norm follows: the gradient is 0, and in float32 what rounding leaves of it.
            assert gradients[name].abs().max() < 1e-12 and value.abs().max() < 2e-5
        else:
            assert_near(gradients[name], value)


def test_deformable_conv_is_its_definition():
    """Bilinear reading at shifted taps, zeros outside, one modulation per group and tap."""
    conv = DeformableConv(8).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps, where = torch.randn(2, 1, 8, 4, 5, dtype=torch.double).unbind(0)
    asked = F.conv2d(where, *conv.conv_offset_mask.parameters(), padding=1)[0]
    expected = conv.bias[:, None, None].repeat(1, 4, 5)
    padded = F.pad(maps[0], (16, 16, 16, 16))
    for y in range(4):
        for x in range(5):
            for group in range(8):
                for tap in range(9):
                    down, right = asked[18 * group + 2 * tap : 18 * group + 2 * tap + 2, y, x]
                    share = asked[144 + 9 * group + tap, y, x].sigmoid()
                    row, column = y + tap // 3 - 1 + down + 16, x + tap % 3 - 1 + right + 16
                    top, left = int(row.floor()), int(column.floor())
                    low, far = row - top, column - left
                    square = padded[group, top : top + 2, left : left + 2]
                    weights = torch.stack([1 - low, low])[:, None] * torch.stack([1 - far, far])
                    read = share * (square * weights).sum()
                    expected[:, y, x] += conv.weight[:, group, tap // 3, tap % 3] * read
    torch.testing.assert_close(conv(maps, where)[0], expected)


def test_start_of_the_alignment():
    """No offsets, and a half of everything."""
    module = FeatureAlignment(32)
    lateral, top_down = torch.randn(2, 1, 32, 5, 6).unbind(0)
    conv = module.dcpack_L2
    expected = F.relu(0.5 * F.conv2d(top_down, conv.weight, padding=1)) + lateral
    torch.testing.assert_close(module(lateral, top_down), expected)


@pytest.mark.parametrize("kind", ["fapn", "msfapn"])
def test_step_keeps_shared_norms_shared(reference, kind):
    data = reference(f"{kind}_head")
    decoder = build(kind, data.config)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1)
    decoder(data.group("input")).mask_features.square().sum().backward()
    before = decoder.layer_1.norm.weight.detach().clone()
    optimizer.step()
    state = decoder.state_dict()
    for one, other in data.config["shared_parameters"]:
        assert torch.equal(state[one], state[other])
    assert not torch.equal(state["align_1.offset.norm.weight"], before)


@pytest.mark.parametrize("kind", ["fapn", "msfapn"])
def test_runs_under_autocast(reference, kind):
    data = reference(f"{kind}_head")
    decoder = build(kind, data.config)
    with torch.autocast("cpu", torch.bfloat16):
        decoder(data.group("input")).mask_features.float().sum().backward()


def test_width_of_another_norm_is_a_multiple_of_the_offset_groups():
    """40 channels: 32 groups do not divide them, but batch norms have none."""
    shapes = {"res2": ShapeSpec(channels=8, stride=4), "res3": ShapeSpec(channels=8, stride=8)}
    decoder = FaPNPixelDecoder(shapes, conv_dim=40, norm="BN")
    assert decoder.align_1.offset.norm is decoder.layer_1.norm
    features = {"res2": torch.randn(2, 8, 8, 8), "res3": torch.randn(2, 8, 4, 4)}
    assert decoder(features).mask_features.shape[-2:] == (8, 8)


def test_width_that_groups_do_not_divide():
    shapes = {"res2": ShapeSpec(channels=8, stride=4), "res3": ShapeSpec(channels=8, stride=8)}
    with pytest.raises(ValueError, match=r"conv_dim \(.*CONVS_DIM\) is 36; feature align"):
        FaPNPixelDecoder(shapes, conv_dim=36)
