"""The tools, on small sizes."""

import importlib.util
from pathlib import Path

import pytest
import torch

from semask import SemanticLayer

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layer_is_measured_beside_its_literal_form(capsys, monkeypatch):
    tool = load("benchmark_layer")
    monkeypatch.setattr(tool, "MAX_SCORES", 100)
    tool.main("--image 96 128 --scale 1 --channels 8 --classes 3".split())
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].split(",")[0].strip() for row in rows] == ["inference", "training step"]
    assert all(float(row[6]) < 1e-4 for row in rows)


@pytest.mark.parametrize("window", [0, 4])
def test_count_is_that_of_the_definition(window):
    """A convolution, and a semantic layer on 6 x 5 cells, which windows pad to 8 x 8."""
    tool = load("count_models")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.layer = SemanticLayer(8, 5, window_size=window)

        def forward(self, images):
            return self.layer(self.conv(images).permute(0, 2, 3, 1))

    hooks, attention = tool.count_with_hooks(Network(), torch.zeros(1, 3, 6, 5))
    cells = 64 if window else 30
    linear = cells * (2 * 8 * 5 + 2 * 8 * 8)
    assert hooks * 1e9 == pytest.approx(30 * 8 * 27 + 2 * 30 * 8 + linear)
    assert attention * 1e9 == pytest.approx(cells * (16 if window else 30) * (8 + 5))
