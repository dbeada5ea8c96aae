"""What the tests share."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared"


@pytest.fixture(autouse=True)
def _no_loggers_left():
    """Detectron2's setup_logger keeps its handlers and levels for the rest of the process."""
    yield
    setup_logger.cache_clear()
    for name in ("sgr", "detectron2", "fvcore", "d2"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and real data beside the checkout, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no folder with reference models and data beside the checkout")
    return SHARED


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")
