"""The quickstart from end to end, as a user starts it, on a tiny model."""

import json
import os
import subprocess
import sys

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
