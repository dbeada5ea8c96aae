"""Every file under configs/: it can be read, does what its name says, and builds."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from semask import SemanticLayer, SemanticMapSupervision
from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SCHEDULED = sorted(CONFIGS.glob("*/*_bs*.yaml"))
SEMASK = [path for path in SCHEDULED if path.name.startswith("semask")]


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


def build(path, *options):
    """A model without memory."""
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta", *options])
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=name)
def test_file_can_be_read(path):
    cfg = load_config(str(path))
    assert bool(cfg.DATASETS.TRAIN) == bool(cfg.DATASETS.TEST)
    if cfg.DATASETS.TRAIN and "_bs" in path.name:
        batch, thousands = map(int, re.search(r"_bs(\d+)_(\d+)k$", path.stem).groups())
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (batch, 1000 * thousands)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == int(path.parent.name.rpartition("-")[2])
        assert cfg.MODEL.SGR.BACKBONE_NAME == cfg.MODEL.BACKBONE.NAME


# Of the public configs: rate, weight decay, the backbone's share of the rate, power of the
# polynomial, iterations of the warm-up and the share of the rate that it starts from.
SOLVERS = {
    "fpn": (1e-4, 1e-4, 1.0, 1.0, 1500, 1e-6),
    "fpn on Cityscapes": (1e-3, 0.05, 1.0, 1.0, 1500, 1e-5),
    "segformer": (6e-4, 0.01, 0.1, 1.0, 1500, 1e-6),  # 6e-5, and ten times as much for the head
    "maskformer": (6e-5, 0.01, 1.0, 0.9, 1500, 1e-6),
    "mask2former": (1e-4, 0.05, 0.1, 0.9, 0, 1.0),
}


@pytest.mark.parametrize("path", SCHEDULED, ids=name)
def test_solver_is_that_of_the_public_configs(path):
    solver = load_config(str(path)).SOLVER
    if "_fpn_" in path.name:
        expected = SOLVERS["fpn on Cityscapes" if "cityscapes" in str(path) else "fpn"]
        if "cityscapes" in str(path) and "_base_" in path.name:
            expected = (*expected[:-1], 1e-6)
    else:
        kind = path.name.split("_")[-3]
        expected = SOLVERS[kind.replace("msfapn", "mask2former").replace("fapn", "mask2former")]
    assert (
        *(solver.BASE_LR, solver.WEIGHT_DECAY, solver.BACKBONE_MULTIPLIER),
        *(solver.POLY_LR_POWER, solver.WARMUP_ITERS, solver.WARMUP_FACTOR),
    ) == expected
    assert solver.OPTIMIZER == "ADAMW" and solver.WEIGHT_DECAY_NORM == 0


@pytest.mark.parametrize("path", SEMASK, ids=name)
def test_windows_are_those_of_the_released_models(path):
    cfg = load_config(str(path))
    window = 7 if "_mit_" in path.name else cfg.MODEL.SWIN.WINDOW_SIZE
    if "cityscapes" in str(path):
        expected = [7 if "mask2former" in path.name else window] * 4
    elif "_base_" in path.name:
        expected = [window] * 4
    elif "_mask" in path.name:
        expected = [window] * 3 + [0]
    else:
        expected = [window] * 2 + [0] * 2
    assert cfg.MODEL.SEMASK.WINDOW_SIZES == expected


FPN = [path for path in SCHEDULED if "_fpn_" in path.name]


@pytest.mark.parametrize("path", FPN, ids=name)
def test_hard_pixels_are_those_of_the_public_configs(path):
    """All of SeMask on COCO-Stuff-10K, SeMask-L on ADE20K, and no baseline."""
    large = "ade20k" in str(path) and "large" in path.name
    has_them = path in SEMASK and (large or "coco-stuff" in str(path))
    assert load_config(str(path)).MODEL.SEMASK.HARD_PIXELS == (100000 if has_them else 0)


@pytest.mark.parametrize("path", FPN, ids=name)
def test_long_images_keep_their_scale(path):
    """The public code bounds the longer side by four times the shorter one, on Cityscapes by two.

    An image that is less long is not made smaller than its scale says.
    """
    sizes = load_config(str(path)).INPUT
    assert sizes.MAX_SIZE_TRAIN >= (2 if "cityscapes" in str(path) else 4) * max(
        sizes.MIN_SIZE_TRAIN
    )


@pytest.mark.parametrize("path", SEMASK, ids=name)
def test_model_can_be_built(path):
    model = build(path)
    layers = [module for module in model.modules() if isinstance(module, SemanticLayer)]
    assert len(layers) == 4
    (criterion,) = model.side_criteria.values()
    assert isinstance(criterion, SemanticMapSupervision)
    assert criterion.align_corners == hasattr(model, "criterion")  # of masks


PUBLISHED = {
    "swin_tiny_fpn_ade20k": "ade20k-150/semask_swin_tiny_fpn_bs16_80k",
    "swin_large_fpn_ade20k": "ade20k-150/semask_swin_large_fpn_bs16_80k",
    "swin_large_maskformer_ade20k": "ade20k-150/semask_swin_large_maskformer_bs16_160k",
    "swin_large_mask2former_ade20k": "ade20k-150/semask_swin_large_mask2former_bs16_160k",
    "swin_large_mask2former_cityscapes": "cityscapes-19/semask_swin_large_mask2former_bs16_90k",
    "swin_large_fapn_mask2former_ade20k": "ade20k-150/semask_swin_large_fapn_bs16_160k",
    "swin_large_msfapn_mask2former_ade20k": "ade20k-150/semask_swin_large_msfapn_bs16_160k",
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_public_checkpoint_fits(file, published, tmp_path, caplog):
    """Names and shapes, of files without memory; the checkpointer would warn of any difference."""
    model = build(CONFIGS / f"{PUBLISHED[file]}.yaml")
    state = {key: torch.empty(shape, device="meta") for key, shape in published(file).items()}
    content = {"model": state}
    if "fpn_ade20k" in file:  # of MMSegmentation
        content = {"meta": {}, "state_dict": state, "optimizer": {"state": {}}}
    else:
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in state.items()
        }
    path = tmp_path / "public.pth"
    torch.save(content, path)
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(str(path))
    assert not caplog.text


def test_difference_to_a_public_checkpoint_is_reported(published, tmp_path, caplog):
    """What the test above relies on: maps of other classes, and no maps at all."""
    tiny = CONFIGS / "ade20k-150" / "semask_swin_tiny_fpn_bs16_80k.yaml"
    state = {
        key: torch.empty(shape, device="meta")
        for key, shape in published("swin_tiny_fpn_ade20k").items()
    }
    path = tmp_path / "public.pth"
    torch.save({"state_dict": state}, path)
    SafeCheckpointer(build(tiny, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19")).load(str(path))
    assert "mlp_cls_q.weight" in caplog.text and "(150, 96)" in caplog.text
    caplog.clear()
    SafeCheckpointer(build(tiny.with_name("swin_tiny_fpn_bs16_80k.yaml"))).load(str(path))
    assert "unexpected" in caplog.text and "semantic_layer" in caplog.text


def test_imagenet_file_starts_the_backbone(tmp_path, caplog):
    """The semantic layers, the head and the norms of the outputs start new; the report says so."""
    model = build(CONFIGS / "ade20k-150" / "semask_swin_tiny_fpn_bs16_80k.yaml")
    own = model.backbone.state_dict()
    state = {
        name: value
        for name, value in own.items()
        if "semantic_layer" not in name and not name.startswith("norm")
    }
    classifier = {"head.weight": torch.empty(1000, 768), "norm.weight": torch.empty(768)}
    path = tmp_path / "swin.pth"
    torch.save({"model": {**state, **classifier}}, path)
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(str(path))
    rows = [line.split("|")[1:3] for line in caplog.text.splitlines() if line.startswith("|")][2:]
    kinds = {kind.strip() for kind, _ in rows}
    assert kinds == {"missing"}
    assert any("semantic_layer" in label for _, label in rows)
    assert not any("blocks" in label for _, label in rows)
