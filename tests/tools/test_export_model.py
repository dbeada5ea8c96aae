"""The tool from its command line to a file that it has checked."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from sgr.engine import load_config
from tiny_model import CONFIG, tiny_options

TOOL = Path(__file__).parents[2] / "tools" / "export_model.py"
# The least model there is: what is exported is the business of tests/test_export.py.
OPTIONS = [
    *tiny_options(),
    *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.OUT_FEATURES", "['res2']"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2']"),
]


@pytest.fixture
def main():
    return runpy.run_path(str(TOOL))["main"]


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of the model."""
    model = build_model(load_config(str(CONFIG), OPTIONS))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def arguments(output, *more):
    return [
        *("--config-file", str(CONFIG), "--size", "50", "70"),
        *("--format", output.suffix[1:], "--output", str(output)),
        *(str(each) for each in more),
        *OPTIONS,
    ]


def test_program_of_a_checkpoint(main, weights, tmp_path, capsys):
    output = tmp_path / "new" / "model.pt2"
    main(arguments(output, "--weights", weights, "--labels", "--uint8"))
    printed = capsys.readouterr().out
    assert "random" not in printed
    assert re.search(r"model\.pt2: \d+\.\d MB in \d+ s", printed)
    assert re.search(r"batch 1: 0\.\d+ % of the labels differ \([2-9] classes\)", printed)
    assert "batch 2: " in printed
    images = torch.randint(0, 256, (3, 3, 50, 70), dtype=torch.uint8)
    labels = torch.export.load(output).module()(images)
    assert labels.shape == (3, 50, 70) and labels.dtype == torch.int64


def test_the_checkpoint_is_not_overwritten(main, weights):
    renamed = weights.rename(weights.with_suffix(".pt2"))
    with pytest.raises(ValueError, match="weights.pt2 would overwrite the input"):
        main(arguments(renamed, "--weights", renamed))


def test_onnx_of_random_weights(main, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    main(arguments(tmp_path / "model.onnx", "--batch", 1, "--weights", ""))
    printed = capsys.readouterr().out
    assert "exporting random weights: the check says little" in printed
    assert re.search(r"batch 1: largest difference \d\.\de-\d+ \(scores .* \d classes\)", printed)
    assert "batch 2" not in printed


def test_int8(main, weights, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (60, 80, 3)), ("labels", (60, 80))):
        (tmp_path / kind).mkdir()
        for name in "ab":
            array = rng.integers(0, 9, shape).astype(np.uint8) * (28 if kind == "images" else 1)
            Image.fromarray(array).save(tmp_path / kind / f"{name}.png")
    description = tmp_path / "int8.yaml"
    description.write_text(
        "{name: int8, classes: 9, splits: {val: {images: images, labels: labels}}}"
    )
    data = ["DATASETS.FILES", f"['{description}']", "DATASETS.TEST", "('int8_val',)"]
    output = tmp_path / "model.onnx"
    more = ["--batch", 1, "--weights", weights, "--int8", tmp_path / "images", "--evaluate"]
    main([*arguments(output, *more), *data])
    printed = capsys.readouterr().out
    share = re.search(r"batch 1: largest difference .* ([\d.]+) % of the labels differ", printed)
    assert 0 < float(share[1]) < 20
    ours, models = re.search(r"int8_val: mIoU ([\d.]+), the model ([\d.]+)", printed).groups()
    assert float(ours) == pytest.approx(float(models), abs=2) and float(models) > 0
    kinds = [node.op_type for node in onnx.load(output).graph.node]
    assert kinds.count("DequantizeLinear") >= 2 * kinds.count("Conv") > 0


def test_a_file_that_differs_is_a_failure(main, tmp_path, monkeypatch):
    monkeypatch.setitem(main.__globals__, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="model.pt2 and the model differ by .*, more than -1"):
        main(arguments(tmp_path / "model.pt2", "--batch", 1, "--weights", ""))


def test_random_weights_are_not_exported_unasked(main, tmp_path):
    with pytest.raises(ValueError, match="there are no weights: name a trained checkpoint"):
        main(arguments(tmp_path / "model.pt2"))
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--size", "0", "70"], "--size: must be at least 1, not 0"),
        (["--output", "."], "--output . is a folder"),
        (["--batch", "0"], "--batch: must be at least 1, not 0"),
        (["--int8", "photos"], "--int8 is for --format onnx"),
        (["--format", "onnx", "--int8", "nowhere"], "--int8 nowhere: "),
        (["--evaluate", "--batch", "2"], "not --batch 2"),
        (["--evaluate", "--labels"], "--evaluate needs scores"),
    ],
)
def test_options_that_make_no_sense(main, capsys, more, message):
    with pytest.raises(SystemExit):
        main(arguments(Path("model.pt2"), *more))
    assert message in capsys.readouterr().err


def test_missing_onnxruntime_is_named_before_the_export(main, capsys, monkeypatch):
    monkeypatch.setitem(main.__globals__, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(arguments(Path("model.onnx")))
    assert "pip install 'sgr-segmentation[export]'" in capsys.readouterr().err
