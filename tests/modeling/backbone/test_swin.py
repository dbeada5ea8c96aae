import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from fvcore.nn import FlopCountAnalysis
from torch.nn import functional as F

from sgr import add_sgr_config
from sgr.modeling.backbone import SwinTransformer, swin_layers
from sgr.modeling.backbone.swin_layers import (
    SwinBlock,
    SwinStage,
    WindowAttention,
    make_shift_mask,
)

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def tiny_swin(**options):
    defaults = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4}
    return SwinTransformer(**{**defaults, **options})


def randomize(module):
    """No zeros or ones left, where a swapped or forgotten parameter would go unnoticed."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def literal_window_attention(block, maps):
    """The definition, patch by patch: windows are a grid whose origin is moved by the shift, and a
    patch attends to the patches of its window; the map is padded with zeros to whole windows."""
    attention, side, shift = block.attn, block.window_size, block.shift
    height, width, dim = maps.shape
    high, wide = (size + -size % side for size in (height, width))
    padded = maps.new_zeros(high, wide, dim)
    padded[:height, :width] = maps
    heads, channels = attention.num_heads, dim // attention.num_heads
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            window = [
                (v, u)
                for v in range(high)
                for u in range(wide)
                if (v - shift) // side == (y - shift) // side
                and (u - shift) // side == (x - shift) // side
            ]
            mixed = []
            for head in range(heads):
                part = slice(head * channels, (head + 1) * channels)
                query = attention.qkv(padded[y, x])[:dim][part]
                logits, values = [], []
                for v, u in window:
                    key = attention.qkv(padded[v, u])[dim : 2 * dim][part]
                    values.append(attention.qkv(padded[v, u])[2 * dim :][part])
                    row = (y - v + side - 1) * (2 * side - 1) + x - u + side - 1
                    bias = attention.relative_position_bias_table[row, head]
                    logits.append(query @ key / channels**0.5 + bias)
                weights = torch.stack(logits).softmax(0)
                mixed.append(sum(weight * value for weight, value in zip(weights, values)))
            result[y, x] = attention.proj(torch.cat(mixed))
    return result


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 2, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 2, 4]
    return cfg


def test_public_backbone(shared):
    """Weights, image and outputs of the public implementation."""
    reference = np.load(shared / "reference" / "swin_backbone.npz")
    state = {
        name.removeprefix("state."): torch.from_numpy(reference[name])
        for name in reference.files
        if name.startswith("state.")
    }
    swin = SwinTransformer(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)).eval()
    indices = {name: value for name, value in swin.state_dict().items() if "index" in name}
    assert all(torch.equal(value, state[name]) for name, value in indices.items())
    swin.load_state_dict(state)
    with torch.no_grad():
        outputs = swin(torch.from_numpy(reference["in.image"]))
    assert list(outputs) == list(STRIDES)
    for name, value in outputs.items():
        torch.testing.assert_close(
            value, torch.from_numpy(reference[f"out.{name}"]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("family", ["maskformer", "mask2former"])
def test_public_names_and_shapes(shared, family):
    lines = (shared / "reference" / f"{family}_swin-tiny_ade20k-150.keys.txt").read_text()
    public = [line.split(" ", 1) for line in lines.splitlines() if line.startswith("backbone.")]
    state = SwinTransformer().state_dict()
    assert [[f"backbone.{name}", str(tuple(v.shape))] for name, v in state.items()] == public


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(5, 7), (3, 4), (2, 2)])
def test_attention_is_its_definition(size, shift):
    """Also where the map is no larger than a window."""
    block = randomize(SwinBlock(4, window_size=3, num_heads=2, shift=shift)).eval()
    maps = torch.randn(2, *size, 4)
    mask = make_shift_mask(*size, 3, shift, maps.device)
    with torch.no_grad():
        expected = torch.stack([literal_window_attention(block, image) for image in maps])
        torch.testing.assert_close(block._attend(maps, mask), expected, atol=1e-5, rtol=1e-5)


def test_block():
    """Normalisation before either branch, exact GELU."""
    block = randomize(SwinBlock(4, window_size=2, num_heads=1, mlp_ratio=3.0)).eval()
    maps = torch.randn(1, 4, 2, 4)
    after = maps + block._attend(F.layer_norm(maps, (4,), *block.norm1.parameters()), None)
    hidden = F.layer_norm(after, (4,), *block.norm2.parameters()) @ block.mlp.fc1.weight.T
    hidden = hidden + block.mlp.fc1.bias
    assert hidden.shape[-1] == 12
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = after + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(maps, None), expected)


def test_scale_of_the_logits():
    plain = randomize(WindowAttention(8, 2, 2))
    scaled = WindowAttention(8, 2, 2, qk_scale=0.25)
    scaled.load_state_dict(plain.state_dict())
    windows = torch.randn(1, 1, 4, 8)
    assert not torch.allclose(scaled(windows), plain(windows))
    with torch.no_grad():
        scaled.qkv.weight[:8] *= 2  # queries, from 0.25 to 4^-0.5
        scaled.qkv.bias[:8] *= 2
    torch.testing.assert_close(scaled(windows), plain(windows))


@pytest.mark.parametrize("most", [1, 4, 5])
def test_windows_beyond_the_limit_of_kernels_come_in_parts(monkeypatch, most):
    block = randomize(SwinBlock(4, window_size=2, num_heads=2, shift=1))
    maps = torch.randn(3, 6, 6, 4)
    mask = make_shift_mask(6, 6, 2, 1, maps.device)
    expected = block(maps, mask)
    monkeypatch.setattr(swin_layers, "MAX_HEADS_AT_ONCE", most)
    seen = []

    def attend(query, *args, **kwargs):
        seen.append(query.shape[1])
        return attention(query, *args, **kwargs)

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    torch.testing.assert_close(block(maps, mask), expected)
    assert sum(seen) == 9 * 2 and max(seen) <= max(most, 2)


def test_cost_of_attention():
    n, dim, side = 32, 8, 4
    flops = FlopCountAnalysis(WindowAttention(dim, side, 2), torch.zeros(1, 2, side**2, dim))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert flops.by_operator()["linear"] == 4 * n * dim**2


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 31), (100, 20), (3, 5)])
def test_any_size(size):
    outputs = tiny_swin().eval()(torch.rand(2, 3, *size))
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    channels = dict(zip(STRIDES, (8, 16, 32, 64)))
    assert shapes == {
        name: (2, channels[name], *(-(-side // stride) for side in size))
        for name, stride in STRIDES.items()
    }
    assert all(value.is_contiguous() for value in outputs.values())


def test_zeros_pad_the_image():
    swin = tiny_swin().eval()
    image = torch.rand(1, 3, 29, 30)
    padded = F.pad(image, (0, 2, 0, 3))
    for one, other in zip(swin(image).values(), swin(padded).values()):
        assert torch.equal(one, other)


def test_images_of_a_batch_do_not_meet():
    swin = randomize(tiny_swin()).eval()
    images = torch.rand(3, 3, 40, 72)
    with torch.no_grad():
        together = swin(images)["res5"]
        alone = torch.cat([swin(image[None])["res5"] for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_recomputation_changes_nothing():
    """Outputs and gradients, with dropout and stochastic depth drawn alike."""
    options = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.3}
    plain = tiny_swin(**options)
    recomputing = tiny_swin(**options, use_checkpoint=True)
    recomputing.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 48, 48)
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(1)
        outputs = model(images)
        sum(value.square().sum() for value in outputs.values()).backward()
        results.append((outputs, {n: p.grad for n, p in model.named_parameters()}))
    for one, other in zip(*results):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name])
    assert all(grad is not None for grad in results[0][1].values())


def test_stochastic_depth_rises():
    swin = tiny_swin(depths=(1, 1, 3, 1), drop_path_rate=0.5)
    rates = [block.drop_path.p for stage in swin.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.rand(1, 3, 32, 32)
    assert len({swin(images)["res5"].sum().item() for _ in range(8)}) > 1


@pytest.mark.parametrize("option", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_evaluation_leaves_chance_out(option):
    swin = randomize(tiny_swin(**{"drop_path_rate": 0.0, option: 0.5}))
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(swin(images)["res5"], swin(images)["res5"])
    swin.eval()
    assert torch.equal(swin(images)["res5"], swin(images)["res5"])


@pytest.mark.parametrize("freeze_at", range(-1, 6))
def test_frozen_parts(freeze_at, cfg):
    """MODEL.BACKBONE.FREEZE_AT counts as it does for a ResNet."""
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.SWIN.APE = True
    swin = build_backbone(cfg)
    parts = [[swin.absolute_pos_embed, *swin.patch_embed.parameters()]]
    for index, stage in enumerate(swin.layers):
        steps = list(swin.layers[index - 1].downsample.parameters()) if index else []
        parts.append([*steps, *stage.blocks.parameters()])
    for number, parameters in enumerate(parts, start=1):
        assert {p.requires_grad for p in parameters} == {number > freeze_at}
    norms = [parameter for i in range(4) for parameter in getattr(swin, f"norm{i}").parameters()]
    assert all(parameter.requires_grad for parameter in norms)
    assert sum(map(len, parts)) + len(norms) == len(list(swin.parameters()))
    swin(torch.rand(1, 3, 32, 32))["res5"].sum().backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in parts[3])


def test_frozen_parts_stay_in_evaluation():
    swin = randomize(tiny_swin(drop_path_rate=0.5, drop_rate=0.2, freeze_at=3))
    images = torch.rand(2, 3, 32, 32)
    expected = swin.eval()(images)
    outputs = swin.train()(images)
    assert swin.training and swin.layers[2].blocks[0].training
    for name in ("res2", "res3"):
        torch.testing.assert_close(outputs[name], expected[name])
    assert not torch.equal(outputs["res4"], expected["res4"])


def test_what_is_frozen_stays_frozen():
    swin = tiny_swin(freeze_at=3)
    swin.freeze(1).train()
    for stage, trained in zip(swin.layers, (False, False, True)):
        assert stage.blocks[0].training == trained
        assert {each.requires_grad for each in stage.blocks.parameters()} == {trained}


def test_the_log_names_what_is_frozen(cfg, caplog):
    """The default of Detectron2, which someone may not be aware of, is not 0."""
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2
    with caplog.at_level("INFO"):
        build_backbone(cfg)
    assert "Not trained in Swin are the embedding of the patches, res2 (MODEL.BACK" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        tiny_swin()
    assert "Not trained" not in caplog.text


def test_stochastic_depth_skips_branches_of_single_images():
    block = randomize(SwinBlock(4, window_size=2, num_heads=1, drop_path=0.5)).train()
    maps = torch.randn(32, 2, 2, 4)
    untouched = (block(maps, None) == maps).flatten(1).all(dim=1)
    assert 0 < untouched.sum() < 32  # one in four is expected


def test_absolute_positions_are_resized():
    plain = tiny_swin().eval()
    swin = tiny_swin(ape=True, pretrain_img_size=32).eval()
    assert swin.absolute_pos_embed.shape == (1, 8, 8, 8)
    swin.load_state_dict(plain.state_dict(), strict=False)
    shift = torch.randn(8)
    with torch.no_grad():
        swin.absolute_pos_embed.copy_(shift[:, None, None].expand(8, 8, 8))
        plain.patch_embed.norm.bias.add_(shift)
        image = torch.rand(1, 3, 40, 56)
        torch.testing.assert_close(swin(image)["res5"], plain(image)["res5"], atol=1e-4, rtol=1e-4)
        assert not torch.equal(tiny_swin(ape=True).eval()(image)["res2"], plain(image)["res2"])


@pytest.mark.parametrize("option", [{"patch_norm": False}, {"qkv_bias": False}])
def test_parameters_that_can_be_left_out(option):
    without, full = tiny_swin(**option), tiny_swin()
    names = full.state_dict().keys() - without.state_dict().keys()
    words = "patch_embed.norm" if "patch_norm" in option else "qkv.bias"
    assert names and all(words in name for name in names)
    assert without(torch.rand(1, 3, 32, 32))["res5"].shape == (1, 64, 1, 1)


def test_what_is_not_asked_for_is_not_built():
    swin = tiny_swin(out_features=("res4", "res3"))
    assert list(swin.output_shape()) == ["res3", "res4"]
    assert swin.output_shape()["res4"] == ShapeSpec(channels=32, stride=16)
    assert swin.size_divisibility == 16
    outputs = swin(torch.rand(1, 3, 32, 32))
    assert list(outputs) == ["res3", "res4"]
    sum(value.square().sum() for value in outputs.values()).backward()
    # As distributed training wants it.
    assert all(parameter.grad is not None for parameter in swin.parameters())


def test_half_precision_by_autocast():
    swin = tiny_swin().eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        expected = swin(images)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = swin(images)
    for name, value in outputs.items():
        torch.testing.assert_close(value.float(), expected[name], atol=0.15, rtol=0.05)


def test_exports_with_any_batch():
    swin = randomize(tiny_swin(ape=True, use_checkpoint=True)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(swin, (torch.rand(2, 3, 65, 97),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for size in (1, 3):
        images = torch.rand(size, 3, 65, 97)
        with torch.no_grad():
            outputs, expected = exported(images), swin(images)
        for name, value in expected.items():
            torch.testing.assert_close(outputs[name], value)


class StageWithClasses(SwinStage):
    """As SeMask's: what the stage puts out is weighted by class maps, which are put out too."""

    def __init__(self, blocks, *args):
        super().__init__(blocks, *args)
        self.classes = torch.nn.Linear(blocks[0].norm1.normalized_shape[0], 3)

    def forward(self, maps):
        maps = super().forward(maps)
        classes = self.classes(maps)
        return maps * classes.sigmoid().amax(dim=3, keepdim=True), classes


class SwinWithClasses(SwinTransformer):
    stage_class = StageWithClasses

    def __init__(self, **options):
        super().__init__(**options)
        for name in list(self._out_features):
            self._out_features.append(f"{name}_classes")
            self._out_feature_channels[f"{name}_classes"] = 3
            self._out_feature_strides[f"{name}_classes"] = self._out_feature_strides[name]

    def run_stage(self, index, maps):
        maps, classes = self.layers[index](maps)
        return maps, {f"res{index + 2}_classes": classes.permute(0, 3, 1, 2)}


def test_a_subclass_replaces_stages_and_puts_out_more():
    options = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "freeze_at": 2}
    options["out_features"] = ("res2", "res3")
    swin, plain = SwinWithClasses(**options), SwinTransformer(**options)
    images = torch.rand(1, 3, 32, 32)
    features = swin(images)
    assert features.keys() == swin.output_shape().keys()
    for name, shape in swin.output_shape().items():
        assert features[name].shape[:2] == (1, shape.channels)
        assert features[name].shape[2] == 32 // shape.stride
    assert swin.size_divisibility == 8
    assert plain.state_dict().keys() < swin.state_dict().keys()
    swin.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(swin(images)["res3"], plain(images)["res3"])
    assert swin.layers[0].classes.weight.requires_grad  # what is new is not frozen


def test_positions_get_no_weight_decay():
    names = tiny_swin(depths=(1, 1, 1, 1), ape=True).no_weight_decay()
    tables = {f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)}
    assert names == {"absolute_pos_embed"} | tables


def test_from_config(cfg):
    cfg.MODEL.SWIN.WINDOW_SIZE = 5
    cfg.MODEL.SWIN.QK_SCALE = 0.3
    cfg.MODEL.SWIN.USE_CHECKPOINT = True
    cfg.MODEL.SWIN.OUT_FEATURES = ["res3", "res5"]
    swin = build_backbone(cfg)
    assert isinstance(swin, SwinTransformer)
    assert [len(stage.blocks) for stage in swin.layers] == [1, 1, 2, 1]
    attention = swin.layers[2].blocks[1].attn
    assert attention.num_heads == 2 and attention.scale == 0.3
    assert attention.relative_position_bias_table.shape == (81, 2)
    assert swin.layers[2].blocks[1].shift == 2 and swin.layers[2].use_checkpoint
    assert swin.layers[3].blocks[0].drop_path.p == pytest.approx(0.3)
    assert list(swin.output_shape()) == ["res3", "res5"] and swin.size_divisibility == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": (1, 2, 2)}, r"depths \[2, 2, 2, 2\] and num_heads \[1, 2, 2\].*MODEL.SWIN"),
        ({"num_heads": (1, 2, 5, 4)}, "stage 3 of Swin has 32 channels, which 5 heads"),
        ({"num_heads": (1, 0, 2, 4)}, "stage 2 of Swin has 16 channels, which 0 heads"),
        ({"window_size": 0}, r"window_size \(MODEL.SWIN.WINDOW_SIZE\) must be at least 1, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate \(.*DROP_PATH_RATE\) is 1.0.*\[0, 1\)"),
        ({"out_features": ("res2", "res6")}, r"\['res2', 'res6'\].*res2, res3, res4, res5"),
        ({"out_features": ()}, r"out_features \(.*OUT_FEATURES\) is \[\]"),
    ],
)
def test_arguments_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        tiny_swin(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_as_cpu(dtype):
    swin = tiny_swin(embed_dim=32, window_size=7).eval()
    images = torch.rand(2, 3, 130, 97)
    with torch.no_grad():
        expected = swin(images)
        swin.cuda()
        with torch.autocast("cuda", dtype):
            outputs = swin(images.cuda())
    for name, value in outputs.items():
        torch.testing.assert_close(value.float().cpu(), expected[name], atol=0.1, rtol=0.05)


@pytest.mark.gpu
def test_more_windows_than_a_kernel_takes():
    attention = WindowAttention(32, 2, 4).cuda()
    windows = torch.randn(1, 16_400, 4, 32, device="cuda")
    no_mask = torch.zeros(16_400, 4, 4, device="cuda")
    torch.testing.assert_close(attention(windows, no_mask), attention(windows))
