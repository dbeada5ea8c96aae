import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from semask import SemanticLayer, SeMaskSwinTransformer, add_semask_config
from semask.swin import SeMaskStage
from sgr.engine import load_config
from sgr.modeling.backbone.swin_layers import PatchMerging, SwinBlock, SwinStage

SMALL = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}


@pytest.mark.parametrize("odd", ["", "_odd"])
@pytest.mark.parametrize(
    ("variant", "windows"),
    [
        ("windowed", (7, 7, 7, 7)),
        ("global_last", (7, 7, 7, 0)),
        ("global_last_two", (7, 7, 0, 0)),
    ],
)
def test_public_backbone(reference, assert_near, variant, windows, odd):
    data = reference("swin_tiny")
    size = data.config
    backbone = SeMaskSwinTransformer(
        semantic={"num_classes": size["num_cls"], "windows": windows},
        embed_dim=size["embed_dim"],
        depths=size["depths"],
        num_heads=size["num_heads"],
    ).eval()
    backbone.load_state_dict(data.group("state"))
    assert list(backbone.state_dict()) == list(data.group("state"))
    with torch.no_grad():
        outputs = backbone(data.tensors[f"input{odd}"])
    expected = data.group(f"output{odd}/{variant}")
    assert outputs.keys() == expected.keys() == set(backbone.output_shape())
    for name, value in outputs.items():
        assert_near(value, expected[name])
        assert value.shape[1] == backbone.output_shape()[name].channels


def test_public_stage(reference, assert_near):
    """Windows of the blocks and of the semantic layer have different sizes."""
    data = reference("swin_stage")
    size = data.config
    dim, window = size["dim"], size["window_size"]
    blocks = [SwinBlock(dim, window, size["num_heads"], shift=shift) for shift in (0, window // 2)]
    layer = SemanticLayer(dim, size["num_classes"], window_size=size["semantic_window_size"])
    stage = SeMaskStage(SwinStage(blocks, PatchMerging(dim)), layer).eval()
    stage.load_state_dict(data.group("state"))
    assert list(stage.state_dict()) == list(data.group("state"))
    with torch.no_grad():
        features, semantic = stage(data.tensors["input"].unflatten(1, (9, 11)))
        down = stage.downsample(features)
    outputs = {
        "features": features.flatten(1, 2),
        "semantic": semantic.flatten(2).transpose(1, 2),
        "downsampled": down.flatten(1, 2),
    }
    for name, value in data.group("output").items():
        assert_near(outputs[name], value)


def build(options=()):
    cfg = load_config(
        "",
        ["MODEL.BACKBONE.NAME", "build_semask_swin_backbone", "MODEL.SWIN.EMBED_DIM", "8",
         "MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 1, 2, 2]",
         "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", *options],
        add_configs=[add_semask_config],
    )  # fmt: skip
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_config():
    backbone = build(
        ["MODEL.SEMASK.WINDOW_SIZES", "[7, 3, 0, 0]", "MODEL.SEMASK.NUM_BLOCKS", "[1, 2, 1, 1]",
         "MODEL.SEMASK.LEARN_SCALE", "False", "MODEL.SWIN.OUT_FEATURES", "['res3', 'res4']",
         "MODEL.BACKBONE.FREEZE_AT", "0"]
    )  # fmt: skip
    layers = [stage.semantic_layer for stage in backbone.layers]
    assert [layer.window_size for layer in layers] == [7, 3, 0]
    assert [len(layer.class_injection) for layer in layers] == [1, 2, 1]
    assert [layer.stride for layer in layers] == [4, 8, 16]
    shapes = {name: (shape.channels, shape.stride) for name, shape in
              backbone.output_shape().items()}  # fmt: skip
    semantic = {"semantic2": (5, 4), "semantic3": (5, 8), "semantic4": (5, 16)}
    assert shapes == {"res3": (16, 8), "res4": (32, 16), **semantic}
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert not any("gamma" in name for name in trained)
    assert len(trained) == len(list(backbone.parameters())) - 4


@pytest.mark.parametrize("name", ["build_semask_swin_backbone", "build_semask_mit_backbone"])
def test_maps_without_their_loss_are_reported(name, caplog):
    """A list of criteria of another file may have taken the place of SeMask's."""
    options = ["MODEL.BACKBONE.NAME", name, "MODEL.MIT.DEPTHS", "[1, 1, 1, 1]"]
    ours = ["MODEL.SIDE_CRITERIA", "['SemanticMapSupervision']"]
    with caplog.at_level("WARNING"):
        build([*options, *ours])
        build([*options, "MODEL.SEMASK.LOSS_WEIGHT", "0.0"])
        assert not caplog.text
        build([*options, "MODEL.SIDE_CRITERIA", "['ConceptSupervision']"])
    assert "have no loss: MODEL.SIDE_CRITERIA is ['ConceptSupervision']. Add Sem" in caplog.text


def test_frozen_stage_has_its_semantic_layer():
    backbone = build().train()  # FREEZE_AT is 2 by default
    frozen = [stage.semantic_layer for stage in backbone.layers[:1]]
    for layer in frozen:
        assert not layer.training
        assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert all(p.requires_grad for p in backbone.layers[1].semantic_layer.parameters())
    assert backbone.layers[1].semantic_layer.training


@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_any_size_of_image(size):
    outputs = SeMaskSwinTransformer(semantic={"num_classes": 5}, **SMALL).eval()(
        torch.randn(1, 3, *size)
    )
    for index, stride in enumerate((4, 8, 16, 32), 2):
        cells = tuple(-(-side // stride) for side in size)
        assert outputs[f"res{index}"].shape[-2:] == cells
        assert outputs[f"semantic{index}"].shape == (1, 5, *cells)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SEMASK.WINDOW_SIZES", "[7, 7]"], r"WINDOW_SIZES\) is \[7, 7\]; .* has 4 stages"),
        (["MODEL.SEMASK.NUM_BLOCKS", "[1]"], r"NUM_BLOCKS\) is \[1\]; .* 4 stages"),
        (
            ["MODEL.SEMASK.WINDOW_SIZES", "[7, 7, -1, 0]"],
            "window_size is -1; .* MODEL.SEMASK",
        ),
        (
            ["MODEL.SEMASK.REGIONS", "['res5']"],
            r"REGIONS\) has \['res5'\]; .* semantic2",
        ),
        (
            [
                *("MODEL.SEMASK.REGIONS", "['semantic3', 'semantic5']"),
                *("MODEL.SWIN.OUT_FEATURES", "['res2', 'res4']"),
            ],
            r"has \['semantic5'\], but .* 'res4' .* are semantic2, semantic3, semantic4",
        ),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "0"], r"NUM_CLASSES\) is 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        build(options)
