"""Backbone files: what gets into them, and where it goes in a model."""

import logging
import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN
from torch import nn

from sgr import add_reasoning
from sgr.checkpoints.backbone_file import (
    compare_with_model,
    differing_settings,
    extract_backbone,
    is_backbone_file,
    part_of,
    place_backbone,
    read_settings,
    reasoning_modules,
    save_backbone,
)
from sgr.checkpoints.checkpointer import SafeCheckpointer, read_checkpoint
from sgr.modeling.backbone import SwinTransformer
from sgr.modeling.reasoning import SemanticGlobalReasoning

SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "out_features": ("res2", "res3")}


def state_of(*names):
    return {name: torch.full((2,), float(index)) for index, name in enumerate(names)}


class Holder(nn.Module):
    """Some parameters of any names, all of two numbers."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.full((2,), -1.0)))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "model._orig_mod."])
def test_backbone_and_reasoning_are_taken(prefix):
    state = state_of(
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.num_batches_tracked",
        "backbone.res5.0.conv1.weight",
        "backbone.reasoning.res5.concepts.weight",
        "sem_seg_head.reasoning.concepts.weight",
        "sem_seg_head.predictor.weight",
        "sem_seg_head.predictor.bias",
        "criterion.empty_weight",
    )
    found = extract_backbone({"model": {prefix + name: v for name, v in state.items()}})
    assert {name: value[0].item() for name, value in found.tensors.items()} == {
        "stem.conv1.weight": 0,
        "res5.0.conv1.weight": 2,
        "reasoning.res5.concepts.weight": 3,
    }
    assert {group: len(names) for group, names in found.left_out.items()} == {
        "num_batches_tracked": 1,
        "sem_seg_head.reasoning": 1,
        "sem_seg_head": 2,
        "criterion": 1,
    }


def test_of_a_pyramid_the_backbone_below_is_taken():
    state = state_of(
        "backbone.fpn_lateral5.weight",
        "backbone.bottom_up.res5.0.conv1.weight",
        "backbone.bottom_up.reasoning.res5.concepts.weight",
        "backbone.reasoning.p5.concepts.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_head.fc1.weight",
    )
    found = extract_backbone({"model": state})
    assert list(found.tensors) == [
        "res5.0.conv1.weight",
        "reasoning.res5.concepts.weight",
        "reasoning.p5.concepts.weight",
    ]
    assert list(found.left_out) == ["feature pyramid", "proposal_generator", "roi_heads"]


def test_arrays_are_taken_and_memory_is_not_shared():
    whole = torch.arange(1000.0)
    state = {"backbone.res2.weight": whole[:4], "backbone.res3.weight": whole[:2].numpy()}
    tensors = extract_backbone({"model": state}).tensors
    assert torch.equal(tensors["res2.weight"], whole[:4])
    assert torch.equal(tensors["res3.weight"], whole[:2])
    assert tensors["res2.weight"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "it has no tensors"),
        (["encoder.weight"], "it has encoder.weight .*train_net.py"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "a classifier, it seems"),
        (["patch_embed.proj.weight", "head.weight"], "a classifier, it seems"),
        (
            ["backbone.reasoning.res5.concepts.weight"],
            "nothing of the backbone itself under 'backbone.', only backbone.reasoning.res5",
        ),
    ],
)
def test_no_backbone(names, words):
    with pytest.raises(ValueError, match=words):
        extract_backbone({"model": state_of(*names)})


def test_file(tmp_path):
    """Readable without unpickling, and free of the versions of modules."""
    path = tmp_path / "b.pth"
    save_backbone(path, nn.BatchNorm2d(2).state_dict(), source="here", settings={"A.B": [1, 2]})
    assert list(tmp_path.iterdir()) == [path]
    content = torch.load(path, weights_only=True)
    assert type(content["model"]) is dict and not hasattr(content["model"], "_metadata")
    assert content["source"] == "here" and content["settings"] == {"A.B": [1, 2]}
    assert is_backbone_file(read_checkpoint(str(path)))
    with pytest.raises(ValueError, match="a backbone file already, made of here"):
        extract_backbone(read_checkpoint(str(path)))
    with pytest.raises(FileExistsError, match="--force"):
        save_backbone(path, {}, source="there")
    save_backbone(path, {}, source="there", overwrite=True)
    assert torch.load(path, weights_only=True)["source"] == "there"


def test_a_file_of_a_newer_release_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "b.pth"
    with monkeypatch.context() as patch:
        patch.setattr("sgr.checkpoints.backbone_file.FORMAT", 2)
        save_backbone(path, state_of("res2.weight"), source="here")
    with pytest.raises(ValueError, match="format 2, of which this release knows only 1"):
        SafeCheckpointer(Holder("backbone.res2.weight")).load(str(path))


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def fail(content, path):
        raise RuntimeError("cannot be opened")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="b.pth' cannot be written: cannot be opened"):
        save_backbone(tmp_path / "b.pth", {}, source="here")


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.pth"
    path.write_text("old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_backbone(path, {}, source="here", overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


@pytest.mark.parametrize("checkpointer", [SafeCheckpointer, DetectionCheckpointer])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_statistics_of_norms_arrive_unchanged(norm, checkpointer, tmp_path):
    """In frozen norms too, whose variances had another form in older checkpoints."""

    def model(norm):
        stage = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
        return nn.ModuleDict({"backbone": nn.ModuleDict({"res2": stage}), "head": nn.Linear(1, 1)})

    trained = model(nn.BatchNorm2d)
    trained["backbone"]["res2"][1].running_var.uniform_(1e-6, 1e-5)  # where epsilon would show
    trained["backbone"]["res2"][1].running_mean.normal_()
    tensors = extract_backbone({"model": trained.state_dict()}).tensors
    names = ("weight", "bias", "running_mean", "running_var")
    assert set(tensors) == {"res2.0.weight", "res2.0.bias", *(f"res2.1.{name}" for name in names)}
    save_backbone(tmp_path / "b.pth", tensors, source="here")
    other = model(norm)
    checkpointer(other).load(str(tmp_path / "b.pth"))
    state = other["backbone"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("place", ["backbone.", "backbone.bottom_up.", "bottom_up.", ""])
def test_places(place):
    names = ("stem.conv1.weight", "res5.0.conv1.weight", "reasoning.res5.concepts.weight")
    model = Holder(*(place + name for name in names[:2]), "roi_heads.box_head.fc1.weight")
    placed = place_backbone(model, state_of(*names))
    # The reasoning module, for which there is no place, beside the others.
    assert list(placed) == [place + name for name in names]


def test_last_stage_in_the_heads():
    names = ("res4.0.conv1.weight", "res5.0.conv1.weight", "reasoning.res5.concepts.weight")
    model = Holder("backbone.res4.0.conv1.weight", "roi_heads.res5.0.conv1.weight")
    placed = place_backbone(model, state_of(*names))
    assert list(placed) == [
        "backbone.res4.0.conv1.weight",
        "roi_heads.res5.0.conv1.weight",
        "backbone.reasoning.res5.concepts.weight",
    ]


def test_no_place():
    tensors = state_of("stem.conv1.weight", "reasoning.res5.concepts.weight")
    model = Holder(
        "backbone.fpn_lateral5.weight",
        "backbone.bottom_up.layers.0.weight",
        "backbone.bottom_up.reasoning.res5.concepts.weight",
    )
    words = "another backbone .*: stem.conv1.weight ...; the model has backbone.bottom_up.layers"
    with pytest.raises(ValueError, match=words):
        place_backbone(model, tensors)


def test_no_place_in_a_model_without_tensors():
    with pytest.raises(ValueError, match="the model has no tensors"):
        place_backbone(nn.Module(), state_of("stem.conv1.weight"))


def swin_detector(*, reasoning, token_dim=16, **options):
    """A Swin under a pyramid, and something else."""
    backbone = SwinTransformer(**{**SWIN, **options})
    if reasoning:
        module = SemanticGlobalReasoning(
            16, num_concepts=6, token_dim=token_dim, num_heads=2, dim_feedforward=8, stride=8
        )
        add_reasoning(backbone, {"res3": module})
    return nn.ModuleDict({"backbone": FPN(backbone, ["res2", "res3"], 4), "head": nn.Linear(2, 2)})


def save_swin(folder, *, reasoning, **options):
    """The backbone of such a model as a file."""
    model = swin_detector(reasoning=reasoning, **options)
    tensors = extract_backbone({"model": model.state_dict()}).tensors
    save_backbone(folder / "swin.pth", tensors, source="a test")
    return str(folder / "swin.pth"), tensors


def test_norms_of_swin_are_not_taken_for_others(tmp_path):
    """Its "norm1" has 16 channels, as have norms of the same name in the reasoning module."""
    path, tensors = save_swin(tmp_path, reasoning=False)
    model = swin_detector(reasoning=True)
    reasoning = model["backbone"].bottom_up.reasoning
    before = {name: value.clone() for name, value in reasoning.state_dict().items()}
    assert any(name.endswith(".norm1.weight") and len(v) == 16 for name, v in before.items())
    nn.init.constant_(model["backbone"].bottom_up.norm1.weight, 7.0)
    SafeCheckpointer(model).load(path)
    assert all(torch.equal(v, before[name]) for name, v in reasoning.state_dict().items())
    state = model["backbone"].bottom_up.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    # Detectron2's, which goes by endings, refuses it.
    with pytest.raises(ValueError, match="one checkpoint key to multiple keys"):
        DetectionCheckpointer(model).load(path)


def test_windows_of_another_size(tmp_path):
    path, tensors = save_swin(tmp_path, reasoning=True)
    model = swin_detector(reasoning=True, window_size=5)
    taken, table = compare_with_model(model, tensors)
    SafeCheckpointer(model).load(path)
    table_name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert f"backbone.bottom_up.{table_name}" in taken and "mismatched" not in table
    assert model["backbone"].bottom_up.state_dict()[table_name].shape == (81, 1)
    assert tensors[table_name].shape == (169, 1)


@pytest.mark.parametrize("fits", [True, False])
def test_what_is_told_is_what_is_done(fits, tmp_path, caplog):
    path, tensors = save_swin(tmp_path, reasoning=True)
    model = swin_detector(reasoning=True, **({} if fits else {"depths": (2, 1), "token_dim": 8}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    taken, table = compare_with_model(model, tensors)
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model).load(path)
    (told,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert told.endswith(table)
    assert "head.* (2 tensors)" in table and "fpn_lateral{2-3}" in table
    assert ("mismatched" in table) is not fits
    count = len(tensors)
    words = f"a backbone only, of a test: {count} tensors, of which {count} have a place"
    assert words in caplog.text
    assert "Recognised ImageNet" not in caplog.text
    untouched = [name for name, p in model.named_parameters() if (p == 9.0).all()]
    assert set(untouched) == {name for name, _ in model.named_parameters()} - set(taken)
    assert (len(taken) == count) is fits


def test_nothing_of_the_backbone_fits(tmp_path):
    tensors = extract_backbone({"model": swin_detector(reasoning=True).state_dict()}).tensors
    tensors = {
        name: value if name.startswith("reasoning.") else torch.zeros(1, 2, 3)
        for name, value in tensors.items()
        if "relative_position" not in name
    }
    words = r"patch_embed.* is \(1, 2, 3\) in the file, \(8, 3, 4, 4\) in the model"
    with pytest.raises(ValueError, match=words):
        compare_with_model(swin_detector(reasoning=True), tensors)


CONFIG = """
INPUT: {FORMAT: RGB}
MODEL:
  PIXEL_MEAN: [1.0, 2.0, 3.0]
  RESNETS: {STRIDE_IN_1X1: false, DEPTH: 50, RES4_DILATION: 2, RES5_MULTI_GRID: [1, 2, 4]}
  SGR: {NUM_HEADS: 4, NUM_CONCEPTS: 8}
"""


def test_settings(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    resnet = {"MODEL.RESNETS.STRIDE_IN_1X1": False}
    images = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0]}
    sgr = {"MODEL.SGR.NUM_HEADS": 4}
    assert read_settings(file, ["layers.0.blocks.0.weight"]) == images
    assert read_settings(file, ["res2.0.conv1.weight"]) == {**images, **resnet}
    dilation = {"MODEL.RESNETS.RES4_DILATION": 2}
    assert read_settings(file, ["res4.0.conv1.weight"]) == {**images, **resnet, **dilation}
    grid = {"MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4]}
    assert read_settings(file, ["res5.0.conv1.weight"]) == {**images, **resnet, **grid}
    names = ["res2.0.conv1.weight", "reasoning.res5.mixer.layers.0.weight"]
    settings = read_settings(file, names)
    assert settings == {**images, **resnet, **sgr}

    cfg = CfgNode.load_cfg(CONFIG)
    assert differing_settings(settings, cfg) == []
    cfg.MODEL.PIXEL_MEAN = (1.0, 2.0, 3.0)
    cfg.INPUT.FORMAT = "BGR"
    del cfg.MODEL["SGR"]
    assert differing_settings(settings, cfg) == [
        ("INPUT.FORMAT", "RGB", "BGR"),
        ("MODEL.SGR.NUM_HEADS", 4, None),
    ]


@pytest.mark.parametrize("text", [None, "", "- 1", "a: !!python/name:os.system", "a: [", "\x00"])
def test_no_settings(text, tmp_path):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert read_settings(tmp_path / "config.yaml", ["res2.weight"]) == {}


@pytest.mark.parametrize("place", ["", "backbone.", "backbone.bottom_up."])
def test_reasoning_modules(place):
    names = ["reasoning.res4.gcn.weight", "reasoning.res4.blocker.bias", "reasoning.p5.gcn.weight"]
    others = ["sem_seg_head.reasoning.gcn.weight", place + "res5.0.conv1.weight"]
    others += [place + "reasoning.res4.blocker.num_batches_tracked"]
    assert reasoning_modules([*(place + name for name in names), *others]) == {
        "res4": {"gcn.weight", "blocker.bias"},
        "p5": {"gcn.weight"},
    }


def test_parts():
    names = ["stem.conv1.weight", "layers.0.blocks.1.norm1.bias", "norm3.weight"]
    assert [part_of(name) for name in names] == ["stem", "layers.0", "norm3"]
    assert part_of("reasoning.res5.concepts.weight") == "reasoning.res5"
