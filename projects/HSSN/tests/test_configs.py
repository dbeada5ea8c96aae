"""Every file under configs/: it can be read, does what its name says, and builds."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from hssn import TreeLoss
from sgr.engine import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PATHS = sorted(CONFIGS.rglob("*.yaml"))


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_file_can_be_read(path):
    cfg = load_config(str(path))
    assert bool(cfg.DATASETS.TRAIN) == bool(cfg.DATASETS.TEST)
    if "_bs" in path.name:
        batch, thousands = map(int, re.search(r"_bs(\d+)_(\d+)k$", path.stem).groups())
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (batch, 1000 * thousands)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == int(path.parent.name.rpartition("-")[2])
        assert cfg.MODEL.SGR.BACKBONE_NAME == cfg.MODEL.BACKBONE.NAME
        solver = cfg.SOLVER  # of the public config
        assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("SGD", 0.01, 5e-5)
        # The rate ends at 5e-5, and nothing warms it up.
        assert (solver.POLY_LR_CONSTANT_ENDING, solver.WARMUP_ITERS) == (0.005, 0)
        assert solver.WEIGHT_DECAY_NORM == solver.WEIGHT_DECAY


TRAINED = [path for path in PATHS if path.parent.name not in ("mixins", "models")]
TRAINED = [path for path in TRAINED if path.name != "by_colour.yaml"]
SIZES = {"shapes": (9, 3), "camvid-11": (11, 7), "cityscapes-19": (19, 7)}
SIZES |= {"coco-stuff-10k-171": (171, 27)}


@pytest.mark.parametrize("path", TRAINED, ids=name)
def test_model_can_be_built(path):
    """Trees are those of the data; flat and tree differ in what the tree adds only."""
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    has_tree = "tree" in path.name or path.name.startswith("hssn")
    loss = model.sem_seg_head.loss
    assert isinstance(loss, TreeLoss) == has_tree
    assert list(model.side_criteria) == (["TreeTripletSupervision"] if has_tree else [])
    assert list(cfg.TEST.EVALUATORS) == ["TreeEvaluator"]
    if has_tree:
        sizes = (9, 5) if "colour" in path.name else SIZES[path.parent.name]
        assert loss.index.tree.sizes == sizes
