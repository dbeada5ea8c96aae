"""The quickstart from end to end, as a user starts it, on a tiny model."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest

from tiny_model import CHECKOUT, tiny_options


def test_trains_evaluates_and_draws(tiny_shapes, tmp_path):
    output = tmp_path / "quickstart"
    options = tiny_options()
    command = [sys.executable, "-W", "ignore", str(CHECKOUT / "tools" / "quickstart.py")]
    command += ["--output", str(output), "--num-images", "2", *options]
    command += ["TEST.EVAL_PERIOD", "3"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tiny_shapes), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics.keys() == {"mIoU", "S_C", "D_C", "S_I", "D_I"}
    assert all(f"{name}  {value:.3f}" in done.stdout for name, value in metrics.items())
    pictures = {path.name for path in (output / "pictures").iterdir()}
    assert {"00000.panel.png", "00000.tokens.png", "00004.panel.png"} <= pictures
    assert (output / "curves.png").is_file() and (output / "train" / "model_final.pth").is_file()
    assert (output / "explorer" / "data" / "00003.js").is_file()
    assert "eta" in done.stdout  # the log shows what is left


# Stands for train_net.py, which takes its time to save after Ctrl-C.
SAVING = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)
    Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGINT, save)
Path("started").touch()
time.sleep(60)
"""


def test_ctrl_c_lets_the_training_save(tmp_path):
    """A terminal sends the signal to the tool and to the training."""
    (tmp_path / "train_net.py").write_text(SAVING)
    (tmp_path / "shapes").mkdir()
    tool = CHECKOUT / "tools" / "quickstart.py"
    # The script as it is run, but with the project's scripts elsewhere.
    (tmp_path / "tools").mkdir()
    copy = tmp_path / "tools" / tool.name
    copy.write_text(tool.read_text())
    # As in the other scripts, "~" stands for the user's folder. The scenes are there already.
    environment = {**os.environ, "HOME": str(tmp_path), "DETECTRON2_DATASETS": "~"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(copy)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert (tmp_path / "saved").exists()
    assert process.returncode == 130
    assert "--resume goes on" in printed and "Traceback" not in printed


@pytest.mark.parametrize("trains", [False, True])
def test_metrics_stay_where_nothing_is_trained(tmp_path, trains):
    metrics = tmp_path / "demo" / "train" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("earlier")
    (tmp_path / "datasets" / "shapes").mkdir(parents=True)
    script = f"from pathlib import Path\nPath({str(metrics)!r}).open('a').write('new')\n"
    (tmp_path / "train_net.py").write_text(script * trains + "raise SystemExit('no such key')")
    (tmp_path / "tools").mkdir()
    copy = tmp_path / "tools" / "quickstart.py"
    copy.write_text((CHECKOUT / "tools" / "quickstart.py").read_text())
    tool = runpy.run_path(str(copy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
        with pytest.raises(SystemExit, match="train_net.py has ended with status 1"):
            tool["main"](["--output", str(tmp_path / "demo"), "MODEL.NO_SUCH_KEY", "1"])
    assert {path.name for path in metrics.parent.iterdir()} == {"metrics.json"}
    assert metrics.read_text() == ("new" if trains else "earlier")


def test_a_wrong_number_of_images_is_found_before_the_training(capsys):
    tool = runpy.run_path(str(CHECKOUT / "tools" / "quickstart.py"))
    with pytest.raises(SystemExit, match="2"):
        tool["parse_args"](["--num-images", "0"])
    assert "--num-images: must be at least 1" in capsys.readouterr().err
