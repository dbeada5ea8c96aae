"""What the tests share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and real data beside the checkout, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no folder with reference models and data beside the checkout")
    return SHARED
