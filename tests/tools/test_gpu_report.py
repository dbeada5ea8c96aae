"""The report of a GPU, tried on the CPU with tiny sizes."""

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def report(output, *options):
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/gpu_report.py"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--output", str(output), *options], capture_output=True, text=True, check=False
    )
    return done, (output / "report.md").read_text()


def test_every_section(tmp_path):
    small = [
        "--minutes",
        "60",
        "--models",
        "small_fcn",
        "--size",
        "64",
        "--images",
        "1",
        "--repeat",
        "1",
    ]
    done, text = report(tmp_path, *small, "--sections", "steps", "attention", "scales")
    assert done.returncode == 0, text
    assert text.count("\n## ") == 3 and "**" not in text
    for case in ("training, float32", "training, autocast", "inference, float32"):
        assert f"| {case}, 1x64x64" in text


def test_what_fails_or_does_not_fit_is_said(tmp_path):
    done, text = report(
        tmp_path,
        *("--sections", "training", "--config", str(tmp_path / "none.yaml"), "--minutes", "0.5"),
    )
    assert done.returncode == 1
    assert "**failed with status" in text and "none.yaml" in text
    done, text = report(tmp_path, "--sections", "attention", "switches", "--minutes", "0")
    # Each key is a command of its own.
    assert text.count("**not run: the time was over**") == 3 and "## switch MODEL.COMPILE" in text


def test_a_config_of_the_folder_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    tool = runpy.run_path(str(ROOT / "tools/gpu_report.py"))
    arguments = ["--sections", "training", "--config", "mine.yaml+configs/mixins/sgr.yaml"]
    (part,) = tool["plan"](tool["build_parser"]().parse_args(arguments))
    assert part.command[1:5] == [
        *("--config-file", str(tmp_path / "mine.yaml")),
        *("--with", "configs/mixins/sgr.yaml"),
    ]
