"""Loading a config: the defaults of the chosen reasoning module."""

import pytest
import yaml
from detectron2.modeling import build_model

from sgr.engine import argument_parser, load_config, setup_config
from tiny_model import CONFIG, tiny_options


def write(path, name, **sgr):
    path.write_text(yaml.safe_dump({"MODEL": {"SGR": {"NAME": name, **sgr}}, "VERSION": 2}))
    return str(path)


def sizes(cfg):
    sgr = cfg.MODEL.SGR
    return sgr.NUM_CONCEPTS, sgr.TOKEN_DIM, sgr.INIT_AS_IDENTITY, sgr.SUPERVISION.WEIGHT


def test_the_name_alone_gives_the_sizes_of_the_module():
    assert sizes(load_config("")) == (512, 512, False, 0.25)
    assert sizes(load_config("", ["MODEL.SGR.NAME", "GloRe"])) == (64, 128, True, 0.0)


def test_explicit_values_win_also_where_they_are_those_of_sgr(tmp_path):
    file = write(tmp_path / "file.yaml", "GloRe", NUM_CONCEPTS=512)
    cfg = load_config(file, ["MODEL.SGR.SUPERVISION.WEIGHT", "0.25"])
    assert sizes(cfg) == (512, 128, True, 0.25)


def test_the_last_name_counts(tmp_path):
    files = [write(tmp_path / "a.yaml", "GloRe"), write(tmp_path / "b.yaml", "Nonsense")]
    assert sizes(load_config(files)) == (512, 512, False, 0.25)
    assert sizes(load_config(files[::-1])) == (64, 128, True, 0.0)


@pytest.mark.parametrize("config", ["maskformer_R50_sgr", "fcn_R50_sgr", "fcn_R50"])
def test_glore_by_its_name_alone(config, caplog):
    """With the weight of the concept losses that the config has for SGR."""
    options = ["MODEL.SGR.NAME", "GloRe", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"]
    cfg = load_config(str(CONFIG.with_name(f"{config}.yaml")), options)
    with caplog.at_level("INFO"):
        model = build_model(cfg)
    assert model.concept_criterion is None
    assert ("No concept losses: GloRe" in caplog.text) == config.endswith("sgr")


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_unknown_datasets_are_errors_before_there_is_a_folder(key, tmp_path):
    folder = tmp_path / "output"
    options = tiny_options(OUTPUT_DIR=folder, **{f"DATASETS__{key}": "('shapes_sem_seg_vall',)"})
    arguments = ["--config-file", str(CONFIG), *options]
    with pytest.raises(ValueError, match=rf"DATASETS.{key} has 'shapes_sem_seg_vall'.*_val'\?"):
        setup_config(argument_parser().parse_args(arguments))
    assert not folder.exists()


def test_an_evaluation_needs_no_training_set(tmp_path):
    options = tiny_options(OUTPUT_DIR=tmp_path, DATASETS__TRAIN="('of another machine',)")
    arguments = ["--eval-only", "--config-file", str(CONFIG), *options]
    assert setup_config(argument_parser().parse_args(arguments)).DATASETS.TRAIN


def test_deformable_convolutions_of_a_resnet_need_a_gpu(tmp_path):
    stages = "[False, False, False, True]"
    options = tiny_options(OUTPUT_DIR=tmp_path, MODEL__RESNETS__DEFORM_ON_PER_STAGE=stages)
    with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE .* GPUs only"):
        setup_config(argument_parser().parse_args(["--config-file", str(CONFIG), *options]))


def test_batch_norms_of_one_process_are_said_once(tmp_path, capsys):
    norms = {f"MODEL__{part}__NORM": "SyncBN" for part in ("RESNETS", "FPN", "SEM_SEG_HEAD")}
    options = tiny_options(OUTPUT_DIR=tmp_path, **norms)
    arguments = ["--config-file", str(CONFIG), *options]
    cfg = setup_config(argument_parser().parse_args(arguments))
    assert {cfg.MODEL[part].NORM for part in ("RESNETS", "FPN", "SEM_SEG_HEAD")} == {"BN"}
    said = "SyncBN becomes BN in MODEL.RESNETS.NORM, MODEL.FPN.NORM, MODEL.SEM_SEG_HEAD.NORM"
    console = capsys.readouterr().out
    assert console.count("SyncBN") == 1 and said in console


@pytest.mark.parametrize("fault", ["full", "file"])
def test_a_folder_that_cannot_be_written_to(tmp_path, fault):
    resource = pytest.importorskip("resource", reason="limits of files, which Windows lacks")
    folder = tmp_path / "run"
    options = tiny_options(OUTPUT_DIR=folder)
    args = argument_parser().parse_args(["--config-file", str(CONFIG), *options])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if fault == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # bytes in a file
        else:
            folder.touch()
        with pytest.raises(OSError, match=r"OUTPUT_DIR '.*run' \(.*free space.*another OUTPUT_DIR"):
            setup_config(args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fault == "file" or not list(folder.iterdir())
