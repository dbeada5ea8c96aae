import logging

import pytest
import torch
import torchvision
from torch import nn

from foreign import TinyBackbone
from sgr.checkpoints.checkpointer import adapt_checkpoint
from sgr.modeling.backbone import SwinTransformer

OPTIONS = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 3}


@pytest.fixture
def swin():
    return SwinTransformer(**OPTIONS).eval()


@pytest.fixture
def classifier():
    """torchvision's, with weights that leave none of them unnoticed."""
    model = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 8, [2, 2, 2, 2], [1, 2, 2, 4], [3, 3], num_classes=5
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def original_release(swin):
    """What a file of the original release holds besides the backbone's weights."""
    state = {n: v.clone() for n, v in swin.state_dict().items() if not n[:5].startswith("norm")}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    state["norm.weight"], state["norm.bias"] = torch.ones(64), torch.zeros(64)
    state["head.weight"], state["head.bias"] = torch.zeros(5, 64), torch.zeros(5)
    return state


@pytest.mark.parametrize("place", ["backbone", "backbone.bottom_up"])
def test_original_release(swin, place):
    model = nn.Module()
    model.backbone = swin
    if place == "backbone.bottom_up":
        model.backbone = nn.Module()
        model.backbone.bottom_up = swin
    file = original_release(swin)
    converted = adapt_checkpoint(model, file)
    backbone = {n for n in swin.state_dict() if not n[:5].startswith("norm")}
    assert converted.keys() == {f"{place}.{name}" for name in backbone}
    assert all(converted[f"{place}.{name}"] is file[name] for name in backbone)


def test_torchvision_computes_the_same(swin, classifier):
    """At a size where no map is smaller than a window: there alone torchvision does not shift."""
    model = nn.ModuleDict({"backbone": swin})
    state = adapt_checkpoint(model, classifier.state_dict())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all(name.startswith("backbone.norm") for name in missing) and len(missing) == 8
    assert not unexpected
    images = torch.rand(2, 3, 160, 136)
    maps = images
    with torch.no_grad():
        outputs = swin(images)
        for index, layer in enumerate(classifier.features):
            maps = layer(maps)
            if index % 2:  # a stage
                expected = getattr(swin, f"norm{index // 2}")(maps).permute(0, 3, 1, 2)
                torch.testing.assert_close(
                    outputs[f"res{index // 2 + 2}"], expected, atol=1e-4, rtol=1e-4
                )


def test_kind_and_place_are_logged(swin, classifier, caplog):
    with caplog.at_level(logging.INFO, logger="sgr"):
        adapt_checkpoint(nn.ModuleDict({"trunk": swin}), classifier.state_dict())
        adapt_checkpoint(swin, original_release(swin))
    first, second = caplog.messages
    assert "torchvision" in first and first.endswith("into trunk")
    assert "original" in second and second.endswith("into the model")


def test_absolute_positions_of_the_original_release():
    swin = SwinTransformer(**OPTIONS, ape=True, pretrain_img_size=12)
    file = original_release(swin)
    rows = torch.arange(9 * 8.0).view(1, 9, 8)  # a row per patch
    file["absolute_pos_embed"] = rows
    converted = adapt_checkpoint(nn.ModuleDict({"backbone": swin}), file)
    positions = converted["backbone.absolute_pos_embed"]
    assert positions.shape == (1, 8, 3, 3) and torch.equal(positions[0, :, 1, 2], rows[0, 5])


@pytest.mark.parametrize("shape", [(1, 10, 8), (9, 8)])
def test_absolute_positions_that_are_no_square_stay(shape):
    swin = SwinTransformer(**OPTIONS, ape=True, pretrain_img_size=12)
    file = original_release(swin) | {"absolute_pos_embed": torch.zeros(shape)}
    model = nn.ModuleDict({"backbone": swin})
    assert adapt_checkpoint(model, file)["backbone.absolute_pos_embed"].shape == shape


@pytest.mark.parametrize(
    "case", ["no Swin in the model", "the model's own", "another network", "Swin V2"]
)
def test_what_is_left_alone(swin, case):
    model, state = nn.ModuleDict({"backbone": swin}), original_release(swin)
    if case == "no Swin in the model":
        model = nn.ModuleDict({"backbone": TinyBackbone()})
    elif case == "the model's own":
        model, state = swin, swin.state_dict()
    elif case == "another network":
        state = TinyBackbone().state_dict()
    else:
        state = torchvision.models.swin_transformer.SwinTransformer(
            [4, 4],
            8,
            [2],
            [1],
            [3, 3],
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
        ).state_dict()
    assert adapt_checkpoint(model, state) == {}


def test_windows_of_another_size(caplog):
    """A table that is linear in the offset stays so (away from the border)."""
    swin = SwinTransformer(**{**OPTIONS, "window_size": 5})  # 9 x 9 offsets
    model = nn.ModuleDict({"backbone": swin})
    table = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"
    offsets = torch.arange(13.0) - 6
    state = {
        table: (10 * offsets[:, None] + offsets).reshape(169, 1),
        index: torch.zeros(49, 49, dtype=torch.int64),
        "head.weight": torch.zeros(169, 2),
    }
    with caplog.at_level(logging.INFO, logger="sgr"):
        state.update(adapt_checkpoint(model, state))
    assert torch.equal(state[index], swin.layers[0].blocks[0].attn.relative_position_index)
    resized = state[table].view(9, 9)[2:-2, 2:-2]
    centres = (torch.arange(9.0) - 4)[2:-2] * 13 / 9
    torch.testing.assert_close(resized, 10 * centres[:, None] + centres, atol=0.5, rtol=0)
    assert state["head.weight"].shape == (169, 2)
    assert len(caplog.messages) == 1 and "from windows of 7 patches to 5" in caplog.text


@pytest.mark.parametrize("shape", [(25, 3), (24, 1), (16, 1), (25,)])
def test_tables_that_cannot_be_resized_stay(shape):
    """Other heads, no square, an even number of offsets, no table at all."""
    swin = SwinTransformer(**{**OPTIONS, "window_size": 5})
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert swin.adapt_checkpoint("", {name: torch.zeros(shape)}) == {}
