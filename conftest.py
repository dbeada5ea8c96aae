"""For the tests of all folders: seeds, so that none depends on which came before, and scenes."""

import random
import signal
from pathlib import Path

import numpy as np
import pytest
import setuptools  # noqa: F401
import torch

from make_shapes import make_shapes

# setuptools is here because Detectron2 imports it when a training begins. Where tests of a random
# order have run before, its first import can fail: it finds Python's distutils, not its own.

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # `nohup` and `&` in a script make a process and its children ignore it; tests interrupt theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Seed what several tests share: whichever of them comes first makes it."""
    if fixturedef.scope != "function":
        seed()


@pytest.fixture(autouse=True)
def _seeded():
    seed()


@pytest.fixture(scope="session")
def tiny_shapes_root(tmp_path_factory) -> Path:
    """A root of datasets with twelve and five small scenes of Shapes."""
    root = tmp_path_factory.mktemp("datasets")
    make_shapes(root, num_train=12, num_val=5, size=96, seed=1)
    return root


@pytest.fixture
def tiny_shapes(tiny_shapes_root, monkeypatch) -> Path:
    """:func:`tiny_shapes_root` as the root of all datasets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
    return tiny_shapes_root
