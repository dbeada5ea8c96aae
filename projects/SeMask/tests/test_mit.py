import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from semask import MixTransformer, SegFormerHead, SemanticLayer
from sgr.checkpoints.checkpointer import SafeCheckpointer

SMALL = {"embed_dims": (8, 16, 20, 32), "depths": (1, 2, 1, 1)}
# Millions of parameters without the classifier, of Table 6 of SegFormer's paper.
PUBLISHED = {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}
DEPTHS = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b3": (3, 4, 18, 3),
          "b4": (3, 8, 27, 3), "b5": (3, 6, 40, 3)}  # fmt: skip


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def literal_block(block, maps):
    """The attention query by query, and the convolutions as sums: (h, w, C) -> (h, w, C)."""
    attn, mlp = block.attn, block.mlp
    height, width, dim = maps.shape
    normed = F.layer_norm(maps, (dim,), *block.norm1.parameters(), eps=1e-6)
    read = normed.flatten(0, 1)
    if attn.sr is not None:
        side = attn.sr.stride[0]
        squares = [
            torch.einsum(
                "yxc,ocyx->o", normed[y : y + side, x : x + side], attn.sr.weight
            ) + attn.sr.bias
            for y in range(0, height - side + 1, side)
            for x in range(0, width - side + 1, side)
        ]  # fmt: skip
        read = F.layer_norm(torch.stack(squares), (dim,), *attn.norm.parameters())
    keys, values = attn.kv(read)[:, :dim], attn.kv(read)[:, dim:]
    wide = dim // attn.num_heads
    mixed = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            query = attn.q(normed[y, x])
            for start in range(0, dim, wide):
                part = slice(start, start + wide)
                shares = (keys[:, part] @ query[part] / wide**0.5).softmax(dim=0)
                mixed[y, x, part] = shares @ values[:, part]
    maps = maps + attn.proj(mixed)
    hidden = mlp.fc1(F.layer_norm(maps, (dim,), *block.norm2.parameters(), eps=1e-6))
    padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
    weight = mlp.dwconv.dwconv.weight[:, 0]
    hidden = mlp.dwconv.dwconv.bias + sum(
        padded[y : y + height, x : x + width] * weight[:, y, x] for y in range(3) for x in range(3)
    )
    return maps + mlp.fc2(F.gelu(hidden))


@pytest.mark.parametrize("stage", [3, 4])
def test_block_is_its_definition(stage):
    """With reduced keys, whose squares do not fit the map, and without."""
    backbone = randomize(MixTransformer(**SMALL)).double()
    block = getattr(backbone, f"block{stage}")[0]
    maps = torch.randn(1, 3, 5, SMALL["embed_dims"][stage - 1], dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(block(maps)[0], literal_block(block, maps[0]))


def test_stages_and_semantic_layers():
    """The layer stands before the norm, which both the output and the next stage read."""
    semantic = {"num_classes": 5, "windows": (3, 3, 0, 0)}
    backbone = randomize(MixTransformer(**SMALL, semantic=semantic))
    images = torch.randn(2, 3, 70, 45)
    with torch.no_grad():
        outputs, maps = backbone(images), images
        for stage, kernel in enumerate((7, 3, 3, 3), 1):
            embed = getattr(backbone, f"patch_embed{stage}")
            stride = 4 if stage == 1 else 2
            maps = F.conv2d(maps, *embed.proj.parameters(), stride, kernel // 2)
            cells = embed.norm(maps.permute(0, 2, 3, 1))
            for block in getattr(backbone, f"block{stage}"):
                cells = block(cells)
            name = f"semantic{stage + 1}"
            cells, semantic = backbone.semantic_layers[name](cells)
            torch.testing.assert_close(outputs[name], semantic)
            norm = getattr(backbone, f"norm{stage}")
            cells = F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, 1e-6)
            maps = cells.permute(0, 3, 1, 2)
            torch.testing.assert_close(outputs[f"res{stage + 1}"], maps)
            stride = 2 ** (stage + 1)
            assert maps.shape[-2:] == (-(-70 // stride), -(-45 // stride))
    assert outputs.keys() == backbone.output_shape().keys()
    layers = [module for module in backbone.modules() if isinstance(module, SemanticLayer)]
    assert [layer.window_size for layer in layers] == [3, 3, 0, 0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_size(name):
    dims = (32, 64, 160, 256) if name == "b0" else (64, 128, 320, 512)
    with torch.device("meta"):
        backbone = MixTransformer(embed_dims=dims, depths=DEPTHS[name])
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert abs(count / 1e6 - PUBLISHED[name]) < 0.15


def test_frozen_stage():
    backbone = MixTransformer(**SMALL, semantic={"num_classes": 5}, freeze_at=2).train()
    trained = {name for name, value in backbone.named_parameters() if value.requires_grad}
    frozen = {name for name, _ in backbone.named_parameters()} - trained
    parts = {name.split(".")[0] for name in frozen}
    assert parts == {"patch_embed1", "block1", "norm1", "semantic_layers"}
    assert {name.split(".")[1] for name in frozen if name.startswith("sem")} == {"semantic2"}
    assert not backbone.block1[0].training and backbone.block2.training


def test_what_is_frozen_stays_frozen(caplog):
    with caplog.at_level("INFO"):
        backbone = MixTransformer(**SMALL, freeze_at=2)
    assert "Not trained in MiT are the embedding of the patches, res2" in caplog.text
    backbone.freeze(0).train()
    assert not backbone.block1[0].training and backbone.block2.training


def test_imagenet_file(tmp_path, caplog):
    backbone = torch.nn.Module()
    backbone.backbone = randomize(MixTransformer(**SMALL))
    public = randomize(MixTransformer(**SMALL)).state_dict()
    path = tmp_path / "mit.pth"
    torch.save({**public, "head.weight": torch.zeros(1000, 32)}, path)
    SafeCheckpointer(backbone).load(str(path))
    assert "missing" not in caplog.text and "unexpected" not in caplog.text
    assert torch.equal(
        backbone.backbone.block2[1].attn.kv.weight, public["block2.1.attn.kv.weight"]
    )


def test_head():
    shapes = {
        "res2": ShapeSpec(channels=3, stride=4),
        "res3": ShapeSpec(channels=5, stride=8),
    }
    head = randomize(
        SegFormerHead(shapes, in_features=["res3", "res2"], conv_dim=4, num_classes=2, norm="BN")
    )
    fine, coarse = torch.randn(1, 3, 5, 6), torch.randn(1, 5, 3, 3)
    decoded = head.decode({"res2": fine, "res3": coarse})
    first, second = (
        torch.einsum("bchw,oc->bohw", x, each.weight[..., 0, 0]) + each.bias[:, None, None]
        for x, each in zip((fine, coarse), head.projections)
    )
    second = F.interpolate(second, (5, 6), mode="bilinear", align_corners=False)
    fused = F.conv2d(torch.cat([first, second], dim=1), head.fuse.weight)
    torch.testing.assert_close(decoded, F.relu(head.fuse.norm(fused)))


def test_bad_options():
    with pytest.raises(ValueError, match=r"embed_dims \[8, 16\] and depths .* must have 4"):
        MixTransformer(embed_dims=[8, 16])
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"MIT.DROP_PATH_RATE\) is {rate}; .* in \[0, 1\)"):
            MixTransformer(**SMALL, drop_path_rate=rate)
    with pytest.raises(ValueError, match="5 heads .* do not divide 12 channels"):
        MixTransformer(embed_dims=[8, 16, 12, 32])
