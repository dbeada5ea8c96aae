"""Every file under configs/: it can be read, does what its name says, and builds."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from protoseg import PrototypeClassifier
from sgr.engine import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODELS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "models")
# HRNet takes seconds to build, and is the same for all data.
BUILT = [path for path in MODELS if "hrnet" not in path.name or "cityscapes" in str(path)]


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=name)
def test_file_can_be_read(path):
    cfg = load_config(str(path))
    assert bool(cfg.DATASETS.TRAIN) == bool(cfg.DATASETS.TEST)
    if "_bs" in path.name and cfg.DATASETS.TRAIN:
        batch, thousands = map(int, re.search(r"_bs(\d+)_(\d+)k$", path.stem).groups())
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (batch, 1000 * thousands)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == int(path.parent.name.rpartition("-")[2])
        assert cfg.MODEL.PROTOSEG.NUM_PROTOTYPES == 10
        solver = cfg.SOLVER  # of the public configs; with Swin, of the paper
        found = solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM
        if "swin" in path.name:
            assert found == ("ADAMW", 6e-5, 0.01, 0.0)
        else:
            assert found == ("SGD", 0.01, 5e-4, 5e-4) and solver.WARMUP_ITERS == 0


@pytest.mark.parametrize("path", BUILT, ids=name)
def test_model_can_be_built(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    classifier = model.sem_seg_head.predictor
    assert isinstance(classifier, PrototypeClassifier)
    expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.PROTOSEG.NUM_PROTOTYPES
    assert classifier.prototypes.shape[:2] == expected
    assert cfg.MODEL.SGR.BACKBONE_NAME == cfg.MODEL.BACKBONE.NAME  # for mixins/sgr.yaml
