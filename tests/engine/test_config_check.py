"""Configs that cannot work are refused with the key, its value and what is expected."""

import os

import pytest

from sgr.engine import argument_parser, load_config, setup_config
from tiny_model import CONFIG, tiny_options

CHANNELS = "each channel of INPUT.FORMAT 'RGB'"
FAULTS = {
    "MODEL.SGR.NUM_LAYERS 0": "MODEL.SGR.NUM_LAYERS is 0; it must be at least 1",
    "MODEL.SGR.NUM_CONCEPTS -5": "MODEL.SGR.NUM_CONCEPTS is -5; it must be at least 1",
    "MODEL.SGR.SUPERVISION.MAX_ACTIVE 0": "MAX_ACTIVE is 0; it must be at least 1",
    "MODEL.SGR.SUPERVISION.WEIGHT -1.0": "WEIGHT is -1.0; it must be at least 0",
    "MODEL.SGR.SUPERVISION.DICE_WEIGHT -0.5": "DICE_WEIGHT is -0.5; it must be at least 0",
    "MODEL.SGR.SUPERVISION.FOCAL_WEIGHT nan": "FOCAL_WEIGHT is 'nan'; it must be a number",
    "MODEL.MASK_FORMER.MASK_WEIGHT 1e999": "MASK_WEIGHT is inf; it must be a finite number",
    "MODEL.SGR.SUPERVISION.FOCAL_ALPHA 2.0": "FOCAL_ALPHA is 2.0; it must be from 0 to 1",
    "MODEL.SGR.SUPERVISION.UNION max": "UNION is 'max'; it must be one of 'sum', 'noisy_or'",
    "MODEL.MASK_FORMER.MASK_WEIGHT -20.0": "MASK_WEIGHT is -20.0; it must be at least 0",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT -1.0": "LOSS_WEIGHT is -1.0; it must be at least 0",
    "MODEL.RESNETS.DEPTH 49": "MODEL.RESNETS.DEPTH is 49; it must be one of 18, 34, 50, 101, 152",
    "MODEL.RESNETS.NORM XBN": "MODEL.RESNETS.NORM is 'XBN'; it must be '', 'BN'",
    "MODEL.PIXEL_MEAN [100.0]": f"PIXEL_MEAN is .100.0.; it must be 3 values, one for {CHANNELS}",
    "MODEL.PIXEL_STD [1.0,0.0,1.0]": "PIXEL_STD is .1.0, 0.0, 1.0.; .* each above 0",
    "MODEL.PIXEL_STD ['a',1,1]": "PIXEL_STD is .*; it must be a list of finite numbers",
    "MODEL.DEVICE gpu": "MODEL.DEVICE is 'gpu'; it must be 'cpu', 'cuda'",
    "MODEL.WEIGHTS None": "MODEL.WEIGHTS is None; it must be a text",
    "INPUT.FORMAT XYZ": "INPUT.FORMAT is 'XYZ'; it must be one of 'L', 'BGR', 'RGB'",
    "INPUT.MIN_SIZE_TRAIN ()": r"INPUT.MIN_SIZE_TRAIN is \(\); it must be at least one value",
    "INPUT.MIN_SIZE_TRAIN (-1,)": r"MIN_SIZE_TRAIN is \(-1,\); .* at least 0",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING foo": "SAMPLING is 'foo'; it must be one of 'choice', 'range'",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING range": "with MIN_SIZE_TRAIN_SAMPLING 'range' it must be 2",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN (640,320)": "the smallest and the",
    "INPUT.SIXTEEN_BIT foo": "INPUT.SIXTEEN_BIT is 'foo'; it must be one of 'refuse', 'full_range'",
    "SOLVER.STEPS (800,400)": r"SOLVER.STEPS is \(800, 400\); it must be iterations in ascending",
    "DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler": "must be one of 'TrainingSampler'",
    "INPUT.MIN_SIZE_TEST -1": "INPUT.MIN_SIZE_TEST is -1; it must be at least 0",
    "INPUT.MAX_SIZE_TEST -1": "INPUT.MAX_SIZE_TEST is -1; it must be at least 0",
    "INPUT.MAX_SIZE_TEST 0": "INPUT.MAX_SIZE_TEST is 0; it must be at least 1, or MIN_SIZE_TEST 0",
    "INPUT.MIN_SCALE 3.0": "INPUT.MIN_SCALE is 3.0; it must be at most MAX_SCALE 2.0",
    "INPUT.COMPONENTS.KERNEL_SIZE 2": "KERNEL_SIZE is 2; it must be odd and at least 1",
    "MODEL.MASK_FORMER.DEC_LAYERS 2147483648": "DEC_LAYERS is 2147483648; it must be at most 1000",
    "TEST.BEST_METRIC mIuO": "BEST_METRIC is 'mIuO'; it must be the name of a metric",
    "TEST.BEST_METRIC tokens/S_C": "EVAL_PERIOD is 0; with TEST.BEST_METRIC 'tokens/S_C'",
    "SOLVER.REFERENCE_WORLD_SIZE 5": "REFERENCE_WORLD_SIZE is 5; it must divide IMS_PER_BATCH 4",
    "SOLVER.IMS_PER_BATCH 0": "SOLVER.IMS_PER_BATCH is 0; it must be at least 1",
    "SOLVER.MAX_ITER 0": "SOLVER.MAX_ITER is 0; it must be at least 1",
    "SOLVER.MAX_ITER -1": "SOLVER.MAX_ITER is -1; it must be at least 1",
    "SOLVER.MAX_ITER 1.5": "SOLVER.MAX_ITER is 1.5; it must be an integer",
    "SOLVER.CHECKPOINT_PERIOD 0": "SOLVER.CHECKPOINT_PERIOD is 0; it must be at least 1",
    "SOLVER.BASE_LR 1": "SOLVER.BASE_LR is 1; it must be a number with a point, such as 1.0",
    "SOLVER.WEIGHT_DECAY_BIAS foo": "WEIGHT_DECAY_BIAS is 'foo'; it must be at least 0",
    "TEST.AUG.ENABLED True TEST.AUG.SCALES () TEST.AUG.MIN_SIZES ()": "one of them must have val",
    "TEST.AUG.ENABLED True TEST.AUG.SCALES (0.5,-1)": "SCALES is .*; each value must be above 0",
    "TEST.CENTER_CROP_SIZE -1": "CENTER_CROP_SIZE is -1; it must be the side of a square",
    "TEST.SLIDING_WINDOW.SIZE (64,)": "WINDOW.SIZE is .64.; it must be 2 values",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES 300": "NUM_CLASSES is 300, so IGNORE_VALUE 255 .*ignore_label",
    "MODEL.META_ARCHITECTURE MaskFormerSegmenter": "registered: .*; did you mean MaskFormerSegment",
    "MODEL.SEM_SEG_HEAD.NAME MaskClasificationHead": "did you mean MaskClassificationHead",
    "MODEL.ROI_HEADS.NAME x": "MODEL.ROI_HEADS.NAME is 'x'; registered: .*Res5ROIHeads",
    "MODEL.SIDE_CRITERIA ['x']": "MODEL.SIDE_CRITERIA is 'x'; registered: .*ConceptSupervision",
    "INPUT.DATASET_MAPPER_NAME semantic_concpt": "did you mean semantic_concept",
    "INPUT.CROP.ENABLED True INPUT.CROP.TYPE foo": "CROP.TYPE must be one of .*not 'foo'",
    "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [0,0]": "CROP.SIZE .* not",
    "MODEL.RESNETS.OUT_FEATURES ['res6']": "each one of 'stem', 'res2'",
    "DATASETS.TRAIN (1,)": "DATASETS.TRAIN is .*; it must be a list of names",
    "MODEL.SGR.NUM_CONCEPT 8": "no key MODEL.SGR.NUM_CONCEPT; did you mean MODEL.SGR.NUM_CONCEPTS",
    "NUM_CONCEPTS 8": "there is no key NUM_CONCEPTS; did you mean MODEL.SGR.NUM_CONCEPTS",
    "MODEL.DEVICE.X 8": "there is no key MODEL.DEVICE.X",
    "MODEL.SGR 8": "MODEL.SGR is 8, but it is a group of keys: NAME",
    "mixins/glore.yaml SOLVER.MAX_ITER 7": "'mixins/glore.yaml' .* needs its own --with",
    "SOLVER.MAX_ITER": "the last option 'SOLVER.MAX_ITER' has no value",
    f"OUTPUT_DIR {os.fsdecode(bytes([0xFF]))}": "OUTPUT_DIR is .*; it must be text that UTF-8",
}


@pytest.mark.parametrize("options", FAULTS)
def test_options(options, tmp_path):
    folder = tmp_path / "output"
    args = argument_parser().parse_args(
        ["--config-file", str(CONFIG), *tiny_options(OUTPUT_DIR=folder), *options.split()]
    )
    with pytest.raises(ValueError, match=FAULTS[options]):
        setup_config(args)
    assert not folder.exists()


def test_no_output_dir():
    with pytest.raises(ValueError, match="OUTPUT_DIR is ''; it must be the path of a folder"):
        load_config("", ["OUTPUT_DIR", ""])


# A list of 9^8 texts in 300 bytes.
REFERENCES = b"A0: &A0 [x, x]\n" + b"".join(
    b"A%d: &A%d [%s]\n" % (n, n, b", ".join([b"*A%d" % (n - 1)] * 9)) for n in range(1, 8)
)
FILES = {
    b"": "is empty; a config file has lines KEY: value",
    b"# nothing\n": "is empty; a config file has lines KEY: value",
    b"- a\n- b\n": "holds a sequence; a config file has lines KEY: value",
    b"just a text": "holds a scalar; a config file has lines KEY: value",
    b"a: [": "is no valid YAML",
    b"[" * 5000: "is no valid YAML: its values are nested too deeply",
    b"DATASETS: {TRAIN: " + b"[" * 60 + b"]" * 60 + b"}": "values are nested too deeply",
    b"MODEL: &m {SGR: *m}": "a value that holds the reference itself",
    REFERENCES: "references .* that make millions of values",
    "OUTPUT_DIR: größe".encode("latin-1"): "is not UTF-8 text; save it as UTF-8",
    b"_BASE_: config.yaml": "config.yaml' or a base of it is its own base: .* -> ",
    b"_BASE_: {a: 1}": "_BASE_ must be a file or a list of files",
    b"_BASE_: empty.yaml": r"empty.yaml' \(_BASE_ of '.*config.yaml'\) is empty",
    b"_BASE_: none.yaml": r"there is no config file '.*none.yaml' \(_BASE_ of '.*config.yaml'\)",
    b"_BASE_: good.yaml\nMODEL: 5": "MODEL is 5, but it is a group of keys",
    b"_BASE_: good.yaml\nMODEL: {WEIGHTS: {a: 1}}": "does not fit its _BASE_: .*WEIGHTS",
    b"MODEL: {SGR: {NUM_CONCEPT: 8}}": "no key MODEL.SGR.NUM_CONCEPT; did you mean MODEL.SGR.NUM",
    b"MODEL: {SGR: {NUM_CONCEPTS: many}}": "NUM_CONCEPTS is 'many'; it must be an integer",
    b"MODEL: {SGR: {NUM_CONCEPTS: 0}}": "NUM_CONCEPTS is 0; it must be at least 1",
    b"1: 2": "there is no key 1",
}


@pytest.mark.parametrize("content", FILES)
def test_files(content, tmp_path):
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "good.yaml").write_text("MODEL: {WEIGHTS: a.pth}")
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=FILES[content]):
        load_config(str(tmp_path / "config.yaml"))


def test_a_cycle_of_two_files(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.yaml").write_text(f"_BASE_: {other}.yaml")
    with pytest.raises(ValueError, match="a.yaml -> .*b.yaml -> .*a.yaml"):
        load_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("allow_unsafe", [False, True])
def test_a_base_of_this_package(allow_unsafe, tmp_path, monkeypatch):
    """``configs/...``, in a list and in a base of a base, too, and from any folder."""
    (tmp_path / "configs").mkdir()
    file, inner = tmp_path / "configs/own.yaml", tmp_path / "configs/inner.yaml"
    file.write_text("_BASE_: [inner.yaml, configs/mixins/glore.yaml]\nSOLVER: {MAX_ITER: 7}")
    inner.write_text("_BASE_: configs/shapes/fcn_R50_sgr.yaml\nSEED: 5")
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "configs/own.yaml"):
        cfg = load_config(name, allow_unsafe=allow_unsafe)
        assert (cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SGR.NAME) == ("FCNHead", "GloRe")
        assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (5, 7)
    own = tmp_path / "configs/configs/shapes/fcn_R50_sgr.yaml"  # one's own comes first
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 6")
    inner.write_text("_BASE_: configs/shapes/fcn_R50_sgr.yaml")
    assert load_config(str(file), allow_unsafe=allow_unsafe).SEED == 6


def test_a_config_of_detectron2s_first_version(tmp_path):
    """Detectron2 brings it up to date as it reads it."""
    (tmp_path / "old.yaml").write_text("VERSION: 1\nMODEL: {WEIGHT: a.pth}")
    assert load_config(str(tmp_path / "old.yaml")).MODEL.WEIGHTS == "a.pth"


def test_all_faults_are_listed():
    with pytest.raises(ValueError) as error:
        load_config("", ["SOLVER.MAX_ITER", "0", "SOLVER.IMS_PER_BATCH", "0"])
    assert len(str(error.value).splitlines()) == 2
