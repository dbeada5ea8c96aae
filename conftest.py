"""Seeds, for the tests of all folders: no result may depend on which test came before."""

import random

import numpy as np
import pytest
import setuptools  # noqa: F401
import torch

# setuptools is here because Detectron2 imports it when a training begins. Where tests of a random
# order have run before, its first import can fail: it finds Python's distutils, not its own.


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
