"""Every file under configs/: it can be read, does what its name says, and builds."""

import re
from pathlib import Path

import detectron2
import pytest
from detectron2.modeling import build_model

from sgr.engine import argument_parser, load_config, setup_config
from sgr.engine.config_check import flat
from sgr.modeling.reasoning import GloRe, ReasoningModule, SemanticGlobalReasoning

# Not by detectron2.model_zoo, whose official version needs pkg_resources, which setuptools dropped.
THEIRS = Path(detectron2.__file__).parent / "model_zoo" / "configs"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MIXINS = CONFIGS / "mixins"
# What has a schedule in its name; the others are bases, or small.
SCHEDULED = sorted(CONFIGS.glob("*/*_bs*.yaml"))
PLAIN = [path for path in SCHEDULED if "_sgr_" not in path.name]
WITH_SGR = sorted([*CONFIGS.glob("*/*_sgr*_bs*.yaml"), *CONFIGS.glob("shapes/*_sgr.yaml")])
ABLATIONS = sorted(CONFIGS.glob("*/ablations/*.yaml"))


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=name)
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


def changes(files, base):
    """Keys in which two configs differ -> their value in the first."""
    ours, others = (dict(flat(load_config(config))) for config in (files, base))
    return {key: ours[key] for key in ours if ours[key] != others[key]}


def with_mixins(path, *names):
    return [str(path), *(str(MIXINS / f"{name}.yaml") for name in names)]


SGR = {"MODEL.SGR.SUPERVISION.WEIGHT": 0.25, "TEST.TOKENS.ENABLED": True}


@pytest.mark.parametrize("path", PLAIN, ids=name)
def test_sgr_can_be_added_to_every_model(path):
    """Nothing else changes, and the backbone below the module is the one of before."""
    base = load_config(str(path))
    files = with_mixins(path, "sgr_in_head" if "fcn_" in path.name else "sgr")
    if "fcn_" in path.name:
        expected = {**SGR, "MODEL.SEM_SEG_HEAD.REASONING": True}
    else:
        expected = {**SGR, "MODEL.BACKBONE.NAME": "build_sgr_backbone"}
        assert base.MODEL.SGR.BACKBONE_NAME == base.MODEL.BACKBONE.NAME
    if base.TEST.TOKENS.ENABLED:  # of mask classifiers
        del expected["TEST.TOKENS.ENABLED"]
    assert changes(files, str(path)) == expected


@pytest.mark.parametrize("path", WITH_SGR, ids=name)
def test_sgr_in_a_name_is_the_mixin(path):
    """Files with SGR in their name, which documents use, are the model without it and the mixin."""
    base = path.with_name(path.name.replace("_sgr", ""))
    if not base.exists():  # only with SGR
        return
    changed = changes(str(path), str(base))
    for key in ("MODEL.SGR.NUM_CONCEPTS", "MODEL.SGR.BACKBONE_NAME", *SGR):
        changed.pop(key, None)
    assert changed.keys() in ({"MODEL.BACKBONE.NAME"}, {"MODEL.SEM_SEG_HEAD.REASONING"})
    assert load_config(str(base)).MODEL.SGR.SUPERVISION.WEIGHT == 0
    weight = load_config(str(path)).MODEL.SGR.SUPERVISION.WEIGHT
    assert (weight > 0) == ("mask_rcnn" not in path.name)


@pytest.mark.parametrize("path", WITH_SGR, ids=name)
def test_glore_can_take_the_place_of_sgr(path):
    expected = {
        "MODEL.SGR.NAME": "GloRe",
        "MODEL.SGR.NUM_CONCEPTS": 64,
        "MODEL.SGR.TOKEN_DIM": 128,
        "MODEL.SGR.INIT_AS_IDENTITY": True,
        "MODEL.SGR.SUPERVISION.WEIGHT": 0.0,
    }
    files = with_mixins(path, "glore")
    assert expected.items() <= dict(flat(load_config(files))).items()
    assert changes(files, str(path)).keys() <= expected.keys()


@pytest.mark.parametrize("reasoning", [SemanticGlobalReasoning, GloRe])
@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("cityscapes-19/upernet_swin_tiny_bs8_89250", "sgr"),
        ("cityscapes-19/fcn_R101_bs8_89250", "sgr"),
        ("cityscapes-19/fcn_R101_bs8_89250", "sgr_in_head"),
        ("coco/mask_rcnn_R101_FPN_bs8_270k", "sgr"),
        ("coco/mask_rcnn_swin_tiny_FPN_bs8_270k", "sgr"),
    ],
)
def test_model_with_a_mixin_can_be_built(path, place, reasoning):
    mixins = [place] if reasoning is SemanticGlobalReasoning else [place, "glore"]
    files = with_mixins(CONFIGS / f"{path}.yaml", *mixins)
    model = build_model(load_config(files, ["MODEL.DEVICE", "cpu"]))
    modules = [module for module in model.modules() if isinstance(module, ReasoningModule)]
    assert [type(module) for module in modules] == [reasoning]
    assert (model.concept_criterion is None) == (reasoning is GloRe)


def test_name_alone_is_glore():
    """On a config of full size, which leaves the module its own defaults."""
    path = CONFIGS / "coco-stuff-10k-171" / "maskformer_R101_sgr_bs16_78750.yaml"
    cfg = dict(flat(load_config(str(path), ["MODEL.SGR.NAME", "GloRe"])))
    mixed = dict(flat(load_config(with_mixins(path, "glore"))))
    assert cfg.pop("MODEL.SGR.SUPERVISION.WEIGHT") == 0.25  # the file's, which GloRe leaves aside
    assert mixed.pop("MODEL.SGR.SUPERVISION.WEIGHT") == 0
    assert cfg == mixed
    model = build_model(load_config(str(path), ["MODEL.SGR.NAME", "GloRe", "MODEL.DEVICE", "cpu"]))
    assert model.concept_criterion is None


def test_mixin_on_the_command_line(tmp_path):
    path = CONFIGS / "ade20k-150" / "upernet_swin_tiny_bs16_151575.yaml"
    arguments = ["--config-file", str(path)]
    for mixin in ("sgr", "glore"):
        arguments += ["--with", str(MIXINS / f"{mixin}.yaml")]
    args = argument_parser().parse_args([*arguments, "MODEL.SGR.NUM_CONCEPTS", "32"])
    args.opts += ["OUTPUT_DIR", str(tmp_path)]
    cfg = setup_config(args)
    assert cfg.MODEL.BACKBONE.NAME == "build_sgr_backbone"
    assert (cfg.MODEL.SGR.NAME, cfg.MODEL.SGR.NUM_CONCEPTS) == ("GloRe", 32)
    with pytest.raises(FileNotFoundError, match="no config file 'nowhere.yaml'"):
        load_config([str(path), "nowhere.yaml"])


def test_mixin_wraps_the_backbone_that_it_finds(tmp_path):
    """Of configs that do not name it for SGR; a file that does so wins, and so does an option."""
    own = tmp_path / "own.yaml"
    own.write_text("MODEL: {BACKBONE: {NAME: build_resnet_deeplab_backbone}}\nVERSION: 2\n")
    mixin, key = MIXINS / "sgr.yaml", "MODEL.SGR.BACKBONE_NAME"
    named = tmp_path / "named.yaml"
    named.write_text(f"_BASE_: {mixin}\nMODEL: {{SGR: {{BACKBONE_NAME: build_swin_backbone}}}}\n")
    default = tmp_path / "default.yaml"
    default.write_text(named.read_text().replace("swin", "resnet"))
    for files, opts, expected in (
        ([own, mixin], [], "build_resnet_deeplab_backbone"),
        ([own, mixin, mixin], [], "build_resnet_deeplab_backbone"),
        ([mixin], [], "build_resnet_backbone"),
        ([own, named], [], "build_swin_backbone"),
        ([own, default], [], "build_resnet_backbone"),
        ([own, mixin], [key, "build_swin_backbone"], "build_swin_backbone"),
        ([CONFIGS / "shapes/mask_rcnn_R50_sgr.yaml", mixin], [], "build_resnet_backbone"),
    ):
        model = load_config(files, opts).MODEL
        assert (model.BACKBONE.NAME, model.SGR.BACKBONE_NAME) == ("build_sgr_backbone", expected)


def test_bases_in_a_circle_are_named(tmp_path):
    for file, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{file}.yaml").write_text(f"_BASE_: ['{base}.yaml']\n")
    with pytest.raises(ValueError, match="a.yaml' or a base of it is its own base"):
        load_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*swin*.yaml")), ids=name)
def test_all_of_swin_is_trained(path):
    """Detectron2's default would freeze the embedding of the patches and the first stage."""
    assert load_config(str(path)).MODEL.BACKBONE.FREEZE_AT == 0


@pytest.mark.parametrize("path", ABLATIONS, ids=name)
def test_ablations_change_what_they_are_about(path):
    changed = changes(str(path), str(CONFIGS / "shapes" / "fcn_R50_sgr.yaml"))
    assert 1 <= len(changed) <= 2
    assert all(key.startswith("MODEL.SGR.") for key in changed)


# What the papers and the public configs say: batch, rate, its factor for the backbone, decay,
# crop, and the weights of the losses.
MASKFORMER = {"CLASS_WEIGHT": 1.0, "MASK_WEIGHT": 20.0, "DICE_WEIGHT": 1.0, "DEC_LAYERS": 6}
PER_PIXEL = {}
MASK2FORMER = {"CLASS_WEIGHT": 2.0, "MASK_WEIGHT": 5.0, "DICE_WEIGHT": 5.0, "DEC_LAYERS": 10}


@pytest.mark.parametrize(
    ("path", "rate", "factor", "decay", "crop", "losses"),
    [
        ("coco-stuff-10k-171/maskformer_R101_sgr_bs16_78750", 1e-4, 0.1, 1e-4, 512, MASKFORMER),
        ("ade20k-150/maskformer_swin_tiny_sgr_bs16_160k", 6e-5, 1.0, 0.01, 512, MASKFORMER),
        ("ade20k-150/mask2former_swin_tiny_bs16_151575", 1e-4, 0.1, 0.05, 512, MASK2FORMER),
        ("coco-stuff-10k-171/mask2former_R101_bs16_78750", 1e-4, 0.1, 0.05, 512, MASK2FORMER),
        ("cityscapes-19/mask2former_R101_bs8_89250", 1e-4, 0.1, 0.05, 768, MASK2FORMER),
        ("coco/mask2former_R50_panoptic_bs16_368750", 1e-4, 0.1, 0.05, None, MASK2FORMER),
        ("coco-stuff-10k-171/fcn_R101_sgr_bs16_78750", 0.04, 0.1, 1e-4, 512, PER_PIXEL),
        ("cityscapes-19/deeplabv3_R101_bs8_89250", 0.06, 0.1, 1e-4, 768, PER_PIXEL),
        ("ade20k-150/upernet_swin_tiny_bs16_151575", 6e-5, 1.0, 0.01, 512, PER_PIXEL),
    ],
)
def test_settings(path, rate, factor, decay, crop, losses):
    mixins = [] if "_sgr" in path else ["sgr"]
    cfg = load_config(with_mixins(CONFIGS / f"{path}.yaml", *mixins))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (rate, factor)
    optimizer = "SGD" if "_R101_" in path and losses is PER_PIXEL else "ADAMW"
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY) == (optimizer, decay)
    if crop is None:
        assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) == (1024, 0.1, 2.0)
    else:
        assert cfg.INPUT.CROP.SIZE == [crop, crop]
        scales = [size / cfg.INPUT.MIN_SIZE_TEST for size in cfg.INPUT.MIN_SIZE_TRAIN]
        assert (scales[0], scales[-1], len(scales)) == (0.5, 2.0, 16)
    assert {key: cfg.MODEL.MASK_FORMER[key] for key in losses} == losses
    assert cfg.MODEL.SGR.SUPERVISION.WEIGHT == 0.25


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("coco/mask_rcnn_*_bs8_*.yaml")), ids=name)
def test_settings_of_detectors(path):
    """Sec. A.1, "Transfer to downstream tasks"."""
    cfg = load_config(str(path))
    assert cfg.SOLVER.STEPS == (210000, 250000)
    ours = (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY)
    assert ours == (("ADAMW", 5e-5, 0.05) if "swin" in path.name else ("SGD", 0.02, 1e-4))
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 1
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    assert sum(anchors.SIZES, []) == [32, 64, 128, 256, 512]
    assert anchors.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    rois = cfg.MODEL.ROI_HEADS
    assert (rois.BATCH_SIZE_PER_IMAGE, rois.POSITIVE_FRACTION) == (512, 0.25)
    assert cfg.TEST.TOKENS.ENABLED == ("_sgr_" in path.name)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == (0 if "swin" in path.name else 2)


@pytest.mark.parametrize(("ours", "theirs"), [("C4", "C4"), ("DC5", "DilatedC5"), ("FPN", "FPN")])
def test_detectors_are_those_of_detectron2(ours, theirs):
    """But for the schedule, the pretrained ResNet and what it wants, masks, and our own keys."""
    path = CONFIGS / "coco" / f"mask_rcnn_R101_{ours}_bs8_270k.yaml"
    changed = changes(str(path), str(THEIRS / f"Base-RCNN-{theirs}.yaml"))
    changed.pop("MODEL.SGR.BACKBONE_NAME", None)  # without effect here: for mixins/sgr.yaml
    assert changed.keys() == {
        "MODEL.META_ARCHITECTURE",
        "MODEL.MASK_ON",
        *("MODEL.RESNETS.DEPTH", "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.WEIGHTS"),
        *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
        *("SOLVER.IMS_PER_BATCH", "SOLVER.STEPS", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"),
        *("MODEL.SGR.SUPERVISION.WEIGHT", "INPUT.DATASET_MAPPER_NAME", "TEST.TOKENS.ENABLED"),
        *("SOLVER.OPTIMIZER", "SOLVER.BACKBONE_MULTIPLIER"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "coco/mask_rcnn_R101_C4_bs8_270k.yaml",
        "coco/mask_rcnn_R101_DC5_sgr_bs8_270k.yaml",
        "coco/mask_rcnn_swin_tiny_FPN_bs8_270k.yaml",
        "coco/mask_rcnn_swin_tiny_FPN_sgr_bs8_270k.yaml",
        "shapes/mask_rcnn_R50.yaml",
        "shapes/mask_rcnn_R50_glore.yaml",
        "shapes/mask_rcnn_R50_sgr.yaml",
    ],
)
def test_detector_can_be_built(path):
    model = build_model(load_config(str(CONFIGS / path), ["MODEL.DEVICE", "cpu"]))
    reasoning = [module for module in model.modules() if isinstance(module, ReasoningModule)]
    assert len(reasoning) == ("_sgr" in path or "_glore" in path)
    assert model.concept_criterion is None


@pytest.mark.parametrize(
    "path",
    [
        "coco/mask2former_R50_panoptic_bs16_368750.yaml",
        "coco/mask2former_R50_instance_bs16_368750.yaml",
        "shapes/mask2former_R50_sgr.yaml",
        "shapes/mask2former_swin_sgr.yaml",
        "cityscapes-19/mask2former_swin_tiny_bs8_89250.yaml",
        "cityscapes-19/deeplabv3_R101_bs8_89250.yaml",
        "ade20k-150/upernet_swin_tiny_bs16_151575.yaml",
        "ade20k-150/maskformer_swin_tiny_sgr_bs16_160k.yaml",
    ],
)
def test_model_can_be_built(path):
    files = with_mixins(CONFIGS / path, *([] if "_sgr" in path else ["sgr"]))
    model = build_model(load_config(files, ["MODEL.DEVICE", "cpu"]))
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
