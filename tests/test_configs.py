"""Every file under configs/: it can be read, does what its name says, and builds."""

import re
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from sgr.engine import load_config
from sgr.modeling.reasoning import ReasoningModule

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# What has a schedule in its name; the others are bases, or small.
SCHEDULED = sorted(CONFIGS.glob("*/*_bs*.yaml"))
WITH_SGR = sorted(CONFIGS.glob("*/*_sgr_bs*.yaml"))


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


def flat(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=name)
def test_file_can_be_read(path):
    cfg = load_config(str(path))
    assert bool(cfg.DATASETS.TRAIN) == bool(cfg.DATASETS.TEST)


@pytest.mark.parametrize("path", SCHEDULED, ids=name)
def test_schedule_is_the_one_in_the_name(path):
    batch, iterations, unit = re.search(r"_bs(\d+)_(\d+)(k?)$", path.stem).groups()
    cfg = load_config(str(path))
    assert cfg.SOLVER.IMS_PER_BATCH == int(batch)
    expected = int(iterations) * (1000 if unit else 1)
    assert abs(cfg.SOLVER.MAX_ITER - expected) < (500 if unit else 1)


@pytest.mark.parametrize("path", WITH_SGR, ids=name)
def test_sgr_changes_the_backbone_and_its_own_keys_only(path):
    with_sgr = dict(flat(load_config(str(path))))
    without = dict(flat(load_config(str(path.with_name(path.name.replace("_sgr_", "_"))))))
    changed = {key for key in with_sgr if with_sgr[key] != without[key]}
    changed = {key for key in changed if not key.startswith("MODEL.SGR.")}
    assert changed == {"MODEL.BACKBONE.NAME"}
    assert with_sgr["MODEL.SGR.SUPERVISION.WEIGHT"] > 0
    assert without["MODEL.SGR.SUPERVISION.WEIGHT"] == 0


# What the papers and the public configs say: batch, rate, its factor for the backbone, decay,
# crop, and the weights of the losses.
MASKFORMER = {"CLASS_WEIGHT": 1.0, "MASK_WEIGHT": 20.0, "DICE_WEIGHT": 1.0, "DEC_LAYERS": 6}
MASK2FORMER = {"CLASS_WEIGHT": 2.0, "MASK_WEIGHT": 5.0, "DICE_WEIGHT": 5.0, "DEC_LAYERS": 10}


@pytest.mark.parametrize(
    ("path", "rate", "factor", "decay", "crop", "losses"),
    [
        ("coco-stuff-10k-171/maskformer_R101_sgr_bs16_78750", 1e-4, 0.1, 1e-4, 512, MASKFORMER),
        ("ade20k-150/maskformer_swin_tiny_sgr_bs16_160k", 6e-5, 1.0, 0.01, 512, MASKFORMER),
        ("ade20k-150/mask2former_swin_tiny_sgr_bs16_151575", 1e-4, 0.1, 0.05, 512, MASK2FORMER),
        ("coco-stuff-10k-171/mask2former_R101_sgr_bs16_78750", 1e-4, 0.1, 0.05, 512, MASK2FORMER),
        ("cityscapes-19/mask2former_R101_sgr_bs8_89250", 1e-4, 0.1, 0.05, 768, MASK2FORMER),
        ("coco/mask2former_R50_panoptic_sgr_bs16_368750", 1e-4, 0.1, 0.05, None, MASK2FORMER),
    ],
)
def test_settings(path, rate, factor, decay, crop, losses):
    cfg = load_config(str(CONFIGS / f"{path}.yaml"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (rate, factor)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY) == ("ADAMW", decay)
    if crop is None:
        assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) == (1024, 0.1, 2.0)
    else:
        assert cfg.INPUT.CROP.SIZE == [crop, crop]
        scales = [size / cfg.INPUT.MIN_SIZE_TEST for size in cfg.INPUT.MIN_SIZE_TRAIN]
        assert (scales[0], scales[-1], len(scales)) == (0.5, 2.0, 16)
    assert {key: cfg.MODEL.MASK_FORMER[key] for key in losses} == losses
    assert cfg.MODEL.SGR.SUPERVISION.WEIGHT == 0.25


@pytest.mark.parametrize(
    "path",
    [
        "coco/mask2former_R50_panoptic_sgr_bs16_368750.yaml",
        "coco/mask2former_R50_instance_sgr_bs16_368750.yaml",
        "shapes/mask2former_R50_sgr.yaml",
        "shapes/mask2former_swin_sgr.yaml",
        "cityscapes-19/mask2former_swin_tiny_sgr_bs8_89250.yaml",
        "ade20k-150/maskformer_swin_tiny_sgr_bs16_160k.yaml",
    ],
)
def test_model_can_be_built(path):
    model = build_model(load_config(str(CONFIGS / path), ["MODEL.DEVICE", "cpu"]))
    assert any(isinstance(module, ReasoningModule) for module in model.modules())
    assert model.concept_criterion is not None


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("coco-stuff-10k-171/maskformer_R101_bs16_78750", "maskformer_R101_coco-stuff-10k-171"),
        ("ade20k-150/maskformer_swin_tiny_bs16_160k", "maskformer_swin-tiny_ade20k-150"),
        ("ade20k-150/mask2former_R101_bs16_160k", "mask2former_R101_ade20k-150"),
        ("ade20k-150/mask2former_swin_tiny_bs16_160k", "mask2former_swin-tiny_ade20k-150"),
    ],
)
def test_names_and_shapes_are_the_public_ones(path, published, shared):
    opts = ["MODEL.DEVICE", "cpu"]
    if published.startswith("mask2former_R101"):
        opts += ["MODEL.RESNETS.NORM", "BN"]  # the list is of a model with trainable norms
    state = build_model(load_config(str(CONFIGS / f"{path}.yaml"), opts)).state_dict()
    lines = (shared / "reference" / f"{published}.keys.txt").read_text().splitlines()
    assert sorted(f"{key} {tuple(value.shape)}" for key, value in state.items()) == sorted(lines)
