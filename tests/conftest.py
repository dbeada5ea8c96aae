"""What the tests share."""

import importlib.util
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


@pytest.fixture(scope="session")
def make_shapes_script():
    """The module datasets/make_shapes.py."""
    spec = importlib.util.spec_from_file_location(
        "make_shapes", CHECKOUT / "datasets" / "make_shapes.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_shapes_root(make_shapes_script, tmp_path_factory) -> Path:
    """A root of datasets with twelve and five small scenes of Shapes."""
    root = tmp_path_factory.mktemp("datasets")
    make_shapes_script.make_shapes(root, num_train=12, num_val=5, size=96, seed=1)
    return root


@pytest.fixture
def tiny_shapes(tiny_shapes_root, monkeypatch) -> Path:
    """:func:`tiny_shapes_root` as the root of all datasets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
    return tiny_shapes_root


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")
