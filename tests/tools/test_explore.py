"""The tool from its command line to a folder."""

import runpy

import pytest
import torch

from explorer_data import read_script
from sgr.explorer import model_name
from sgr.load import load_model
from tiny_model import CHECKOUT, tiny_options

TOOL = runpy.run_path(str(CHECKOUT / "tools" / "explore.py"))
SHAPES = CHECKOUT / "configs" / "shapes"


@pytest.fixture
def checkpoint(tiny_shapes, tmp_path):
    options = tiny_options()
    model, _ = load_model(str(SHAPES / "maskformer_R50_sgr.yaml"), "", *options)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def run(checkpoint, *arguments, options=()):
    config = ["--config-file", str(SHAPES / "maskformer_R50_sgr.yaml")]
    return TOOL["main"](
        [*arguments, *config, "--weights", str(checkpoint), *tiny_options(), *options]
    )


def index_of(folder):
    (content,) = read_script(folder / "data" / "index.js", "explorerIndex")
    return content


def test_a_dataset_and_two_models(checkpoint, tmp_path, capsys):
    other = f"other={SHAPES / 'maskformer_R50_sgr.yaml'}@{checkpoint}"
    folder = tmp_path / "explorer"
    status = run(
        checkpoint, "--output", str(folder), "--num-images", "3", "--models", other, "--name", "one"
    )
    assert status == 0 and "3 images in" in capsys.readouterr().out
    content = index_of(folder)
    assert [model["name"] for model in content["models"]] == ["one", "other"]
    assert [image["name"] for image in content["images"]] == ["00000.jpg", "00002.jpg", "00004.jpg"]
    assert all(image["differ"] == [[0, 1, 0]] for image in content["images"])


def test_a_folder_with_a_damaged_file(checkpoint, tiny_shapes, tmp_path, capsys):
    photos = tiny_shapes / "shapes" / "images" / "val"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    folder = tmp_path / "explorer"
    status = run(checkpoint, "--input", str(photos), str(broken), "--output", str(folder))
    assert status == 1 and "broken.png" in capsys.readouterr().err
    content = index_of(folder)
    assert len(content["images"]) == 5
    assert content["models"][0]["name"] == "maskformer_R50_sgr"


def test_nothing_to_explore(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no image to explore.*no such file"):
        run(checkpoint, "--input", str(tmp_path / "none"), "--output", str(tmp_path / "explorer"))
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        folder = str(tmp_path / "explorer")
        run(checkpoint, "--output", folder, options=("DATASETS.TEST", "()"))


def test_a_folder_with_something_else(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(SystemExit):
        TOOL["parse_args"](["--output", str(tmp_path), "--config-file", "c"])
    assert "holds something else than an explorer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "a.jpg", "INPUT.MIN_SIZE_TEST", "32"], "INPUT.MIN_SIZE_TEST looks like a key"),
        (["--max-side", "16"], "--max-side: must be at least 32"),
    ],
)
def test_mistakes_are_told(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        TOOL["parse_args"](["--output", str(tmp_path), "--config-file", "c", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["model.yaml", "=a.yaml", "a=", "a=@weights", "a=b.yaml@"])
def test_models_have_names_and_configs(text, capsys):
    with pytest.raises(SystemExit):
        TOOL["parse_args"](["--models", text, "--config-file", "c"])
    assert "NAME=CONFIG" in capsys.readouterr().err


def test_parts_of_a_model():
    args = TOOL["parse_args"](["--models", "a=b.yaml+c.yaml@d.pth", "e=f", "--config-file", "c"])
    assert args.models == [("a", ["b.yaml", "c.yaml"], "d.pth"), ("e", ["f"], None)]


@pytest.mark.parametrize(
    "text, configs, weights",
    [
        ("hf-hub:me/tiny", ["hf-hub:me/tiny"], None),
        ("hf-hub:me/tiny@v1", ["hf-hub:me/tiny@v1"], None),
        ("hf-hub:me/tiny@v1@d.pth", ["hf-hub:me/tiny@v1"], "d.pth"),
        ("b.yaml+hf-hub:me/tiny@v1", ["b.yaml", "hf-hub:me/tiny@v1"], None),
        ("me@work/model", ["me@work/model"], None),
        ("me@work/model@d.pth", ["me@work/model"], "d.pth"),
        ("b.yaml@me@work/d.pth", ["b.yaml"], "me@work/d.pth"),
    ],
)
def test_names_with_an_at_sign(tmp_path, monkeypatch, text, configs, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@work" / "model").mkdir(parents=True)
    (tmp_path / "b.yaml").touch()
    args = TOOL["parse_args"](["--models", f"a={text}", "--config-file", "c"])
    assert args.models == [("a", configs, weights)]


def test_a_model_is_called_after_its_folder_or_its_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.v1").mkdir()
    for name in ("model.json", "config.yaml"):
        (tmp_path / "tiny.v1" / name).touch()
    assert model_name("tiny.v1") == model_name("tiny.v1/config.yaml") == "tiny.v1"
    assert model_name("configs/sgr.yaml") == "sgr" and model_name("hf-hub:me/tiny") == "tiny"
