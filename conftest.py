"""Seeds, for the tests of all folders: no result may depend on which test came before."""

import random

import numpy as np
import pytest
import torch


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
