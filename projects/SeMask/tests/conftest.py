"""What the tests of SeMask share."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT.parent / "shared" / "semask"


@pytest.fixture
def assert_near():
    """Compare a result with a public float32 one: within 1e-5 of its largest value, or of 1."""

    def check(value, expected):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(value.float(), expected, atol=1e-5 * scale, rtol=0)

    return check


@pytest.fixture
def reference():
    """Read a file of the public modules' weights, inputs, outputs and gradients by its name.

    These files hold numbers and names only. They lie beside the checkout, as those of the core do.
    """
    if not REFERENCE.is_dir():
        pytest.skip("no folder with reference models beside the checkout")

    def read(name):
        arrays = np.load(REFERENCE / f"semask_{name}.npz")
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}

        def group(prefix):
            return {
                key.removeprefix(f"{prefix}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{prefix}/")
            }

        config = json.loads(str(arrays["config"]))
        return SimpleNamespace(tensors=tensors, group=group, config=config)

    return read


@pytest.fixture
def published():
    """Read a list of a public model's names and shapes."""
    if not REFERENCE.is_dir():
        pytest.skip("no folder with reference models beside the checkout")

    def read(name):
        lines = (REFERENCE / f"semask_{name}.keys.txt").read_text().splitlines()
        pairs = [line.split(" ", 1) for line in lines]
        return {
            key: tuple(map(int, shape.strip("(),").split(","))) if shape != "()" else ()
            for key, shape in pairs
        }

    return read
