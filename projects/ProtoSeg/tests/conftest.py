"""What the tests of ProtoSeg share."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT.parent / "shared" / "systems" / "protoseg.npz"


@pytest.fixture
def assert_near():
    def check(value, expected):
        torch.testing.assert_close(value.float(), expected, atol=1e-5, rtol=0)

    return check


@pytest.fixture(scope="session")
def reference():
    """Weights, inputs and outputs of the public module: ``state``, ``input``, ``output``, sizes.

    The file holds numbers and names only. It lies beside the checkout, as those of the core do.
    """
    if not REFERENCE.is_file():
        pytest.skip("no file of the public module beside the checkout")
    arrays = np.load(REFERENCE)
    groups = {"state": {}, "input": {}, "output": {}}
    for key in arrays.files:
        group, _, name = key.partition("/")
        if name:
            groups[group][name] = torch.from_numpy(arrays[key])
    return SimpleNamespace(**groups, config=json.loads(str(arrays["config"])))
