"""Backbone files: what gets into them, and where it goes in a model."""

import logging
import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN
from torch import nn

from sgr import add_reasoning
from sgr.checkpoints.backbone_file import (
    extract_backbone,
    is_backbone_file,
    place_backbone,
    read_settings,
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
    tensors = extract_backbone({"model": {prefix + name: v for name, v in state.items()}})
    assert {name: value[0].item() for name, value in tensors.items()} == {
        "stem.conv1.weight": 0,
        "res5.0.conv1.weight": 2,
        "reasoning.res5.concepts.weight": 3,
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
    assert list(extract_backbone({"model": state})) == [
        "res5.0.conv1.weight",
        "reasoning.res5.concepts.weight",
        "reasoning.p5.concepts.weight",
    ]


def test_arrays_are_taken_and_memory_is_not_shared():
    whole = torch.arange(1000.0)
    state = {"backbone.res2.weight": whole[:4], "backbone.res3.weight": whole[:2].numpy()}
    tensors = extract_backbone({"model": state})
    assert torch.equal(tensors["res2.weight"], whole[:4])
    assert torch.equal(tensors["res3.weight"], whole[:2])
    assert tensors["res2.weight"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "the checkpoint has no tensors"),
        (["encoder.weight"], "the checkpoint has encoder.weight .*train_net.py"),
        (["conv1.weight", "fc.weight"], "A classifier of ImageNet goes into MODEL.WEIGHTS"),
        (["backbone.reasoning.res5.weight", "head.bias"], "has backbone.reasoning.res5.weight ..."),
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
    save_backbone(path, {}, source="there")
    assert torch.load(path, weights_only=True)["source"] == "there"


def test_a_file_of_a_newer_release_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "b.pth"
    with monkeypatch.context() as patch:
        patch.setattr("sgr.checkpoints.backbone_file.FORMAT", 2)
        save_backbone(path, state_of("res2.weight"), source="here")
    with pytest.raises(ValueError, match="format 2; this release knows only format 1"):
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
        save_backbone(path, {}, source="here")
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
    tensors = extract_backbone({"model": trained.state_dict()})
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
    tensors = extract_backbone({"model": model.state_dict()})
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
    SafeCheckpointer(model).load(path)
    table_name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert model["backbone"].bottom_up.state_dict()[table_name].shape == (81, 1)
    assert tensors[table_name].shape == (169, 1)


@pytest.mark.parametrize("fits", [True, False])
def test_the_log_tells_what_is_taken(fits, tmp_path, caplog):
    path, tensors = save_swin(tmp_path, reasoning=True)
    model = swin_detector(reasoning=True, **({} if fits else {"depths": (2, 1), "token_dim": 8}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model).load(path)
    (table,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "head.* (2 tensors)" in table and "fpn_lateral" in table
    assert ("| mismatched |" in table) is not fits
    count = len(tensors)
    words = f"a backbone only, of a test: {count} tensors, of which {count} have a place"
    assert words in caplog.text
    assert "Recognised ImageNet" not in caplog.text
    untouched = [name for name, p in model.named_parameters() if (p == 9.0).all()]
    assert all("bottom_up" not in name for name in untouched) is fits


def test_nothing_of_the_backbone_fits(tmp_path):
    tensors = extract_backbone({"model": swin_detector(reasoning=False).state_dict()})
    tensors = {name: torch.zeros(1, 2, 3) for name in tensors if "relative_position" not in name}
    save_backbone(tmp_path / "b.pth", tensors, source="a test")
    words = r"patch_embed.* is \(1, 2, 3\) in the file, \(8, 3, 4, 4\) in the model"
    with pytest.raises(ValueError, match=words):
        SafeCheckpointer(swin_detector(reasoning=False)).load(str(tmp_path / "b.pth"))


SETTINGS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
CONFIG = """
INPUT: {FORMAT: RGB}
MODEL:
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  SGR: {NUM_CONCEPTS: 8}
"""


def test_settings(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert read_settings(tmp_path / "config.yaml") == SETTINGS


@pytest.mark.parametrize(
    "text", [None, "", "- 1", "a: !!python/name:os.system", "a: [", "\x00", "INPUT: 1"]
)
def test_no_settings(text, tmp_path):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert read_settings(tmp_path / "config.yaml") == {}


@pytest.mark.parametrize("input_format", ["RGB", "BGR", None])
def test_another_preparation_of_the_images(input_format, tmp_path, caplog):
    """A file of an earlier release may tell more; a model may tell less."""
    model = Holder("backbone.res2.weight")
    model.input_format = input_format
    model.register_buffer("pixel_mean", torch.tensor(SETTINGS["MODEL.PIXEL_MEAN"])[:, None, None])
    if input_format == "BGR":
        model.pixel_mean += 1
    path = tmp_path / "b.pth"
    settings = {**SETTINGS, "MODEL.RESNETS.STRIDE_IN_1X1": False}
    save_backbone(path, state_of("res2.weight"), source="here", settings=settings)
    SafeCheckpointer(model).load(str(path))
    differing = [text for text in caplog.messages if "was trained with" in text]
    if input_format == "BGR":
        first, second = differing
        assert "trained with INPUT.FORMAT RGB, the model has BGR" in first
        assert "[123.675, 116.28, 103.53], the model has [124.675, 117.28, 104.53]" in second
    else:
        assert not differing
