"""One line to a trained model."""

import argparse

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import sgr
from sgr.engine import load_config
from sgr.load import add_model_arguments
from tiny_model import CONFIG, tiny_config, tiny_options


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of the tiny model."""
    model = build_model(tiny_config(tmp_path))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_file_and_options(weights):
    model, cfg = sgr.load_model(CONFIG, weights, *tiny_options(), "INPUT.MIN_SIZE_TEST", 32)
    assert cfg.MODEL.WEIGHTS == str(weights) and cfg.INPUT.MIN_SIZE_TEST == 32
    assert not any(module.training for module in model.modules()) and cfg.is_frozen()
    expected = torch.load(weights)["model"]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    assert model([{"image": image}])[0]["sem_seg"].shape == (9, 40, 50)


def test_a_config_stays_as_it_was(weights, tmp_path):
    given = tiny_config(tmp_path, MODEL__WEIGHTS=weights)
    _, cfg = sgr.load_model(given, None, "INPUT.MIN_SIZE_TEST", "32")
    assert (given.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) == (96, 32)
    assert cfg.MODEL.WEIGHTS == str(weights) and not given.is_frozen()


def test_several_files():
    """The later one overrides the earlier one, as ``--with`` does."""
    files = [str(CONFIG), CONFIG.parents[1] / "mixins" / "glore.yaml"]
    assert sgr.load_model(files, "", *tiny_options())[1].MODEL.SGR.NAME == "GloRe"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_model_is_on_the_cpu(weights, tmp_path):
    cfg = tiny_config(tmp_path, MODEL__DEVICE="cuda", MODEL__RESNETS__NORM="SyncBN")
    model, cfg = sgr.load_model(cfg, "")
    assert cfg.MODEL.DEVICE == "cpu" and model.device.type == "cpu"
    assert cfg.MODEL.RESNETS.NORM == "BN"


def test_what_cannot_be_used_is_told(weights, tmp_path):
    cfg = tiny_config(tmp_path)
    with pytest.raises(ValueError, match="there are no weights: .* MODEL.WEIGHTS FILE"):
        sgr.load_model(cfg)
    with pytest.raises(ValueError, match="no keys of SGR: call sgr.add_sgr_config"):
        sgr.load_model(get_cfg(), weights)
    with pytest.raises(ValueError, match="'INPUT.MIN_SIZE_TEST' has no value"):
        sgr.load_model(cfg, weights, "INPUT.MIN_SIZE_TEST")
    with pytest.raises(FileNotFoundError, match="none.pth"):
        sgr.load_model(cfg, tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        sgr.load_model(tmp_path / "none.yaml", weights)
    tensors = torch.load(weights)["model"]
    backbone = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(
        ValueError, match="backbone.pth' holds nothing of the model's sem_seg_head: .* to start a"
    ):
        sgr.load_model(cfg, tmp_path / "backbone.pth")


def test_weights_of_another_model_are_refused(weights, tmp_path):
    message = r"does not fit \d+ of the model's parameters: .*class_embed.weight is \(10, 16\) in "
    with pytest.raises(ValueError, match=message + r"the file, \(8, 16\) in the model"):
        sgr.load_model(tiny_config(tmp_path, MODEL__SEM_SEG_HEAD__NUM_CLASSES=7), weights)
    tensors = torch.load(weights)["model"]
    plain = {name: value for name, value in tensors.items() if ".reasoning." not in name}
    torch.save({"model": plain}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="backbone.reasoning.* is missing in the file"):
        sgr.load_model(tiny_config(tmp_path), tmp_path / "plain.pth")


def test_files_that_can_run_code_are_refused_unless_allowed(weights, tmp_path):
    unsafe = tmp_path / "unsafe.yaml"
    unsafe.write_text(f"_BASE_: {CONFIG}\nSEED: !!python/object/apply:int [3]\n")
    with pytest.raises(ValueError, match="--allow-unsafe-yaml"):
        sgr.load_model(unsafe, weights, *tiny_options())
    options = tiny_options()
    assert sgr.load_model(unsafe, weights, *options, allow_unsafe_yaml=True)
    pickled = tmp_path / "model.pkl"
    torch.save({"model": torch.load(weights)["model"], "__author__": "x"}, pickled)
    with pytest.raises(ValueError, match="--allow-pickle"):
        sgr.load_model(CONFIG, pickled, *options)


def test_classes_that_are_left_to_missing_data():
    template = CONFIG.parents[1] / "your-data" / "fcn_R50_sgr.yaml"
    assert load_config(str(template)).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0
    with pytest.raises(ValueError, match=r"NUM_CLASSES\) is 0"):
        sgr.load_model(template, "")


def test_arguments_of_the_tools():
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    args = parser.parse_args(
        "--config-file a.yaml --with b.yaml --with c.yaml --weights w --allow-pickle A.B 1".split()
    )
    assert (args.config_file, args.mixins, args.weights) == ("a.yaml", ["b.yaml", "c.yaml"], "w")
    assert args.allow_pickle and not args.allow_unsafe_yaml and args.opts == ["A.B", "1"]
