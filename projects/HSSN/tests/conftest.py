"""What the tests of HSSN share."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hssn import NodeIndex
from sgr.data.class_tree import ClassTree

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT.parent / "shared" / "systems"


def nested(parents, num_leaves, node=-1):
    """The tree of a list of parents, as a dataset has it; names are numbers."""
    children = [child for child, parent in enumerate(parents) if parent == node]
    below = {str(child): nested(parents, num_leaves, child) for child in children}
    return below or None


def _tree_of(parents, num_leaves):
    names = [str(label) for label in range(num_leaves)]
    return ClassTree.parse(nested(parents, num_leaves), names)


@pytest.fixture(scope="session")
def tree_of():
    """Make a tree of V parents, -1 for none, of which the classes come first."""
    return _tree_of


@pytest.fixture(scope="session")
def example():
    """The tree of cat, dog and car by three levels."""
    tree = {"thing": {"animal": ["cat", "dog"], "vehicle": ["car"]}}
    return NodeIndex(ClassTree.parse(tree, ["cat", "dog", "car"]))


@pytest.fixture(scope="session")
def three_levels():
    """7 + 3 + 2 nodes, as of the parts of a person."""
    return NodeIndex(_tree_of([7, 8, 8, 8, 8, 9, 9, 10, 11, 11, -1, -1], 7))


@pytest.fixture
def reference():
    """Read a file of inputs and outputs of the public modules by its name.

    These files hold numbers and names only. They lie beside the checkout, as those of the core do.
    """
    if not REFERENCE.is_dir():
        pytest.skip("no folder with reference models beside the checkout")

    def read(name):
        arrays = np.load(REFERENCE / f"hssn_{name}.npz")
        values = {
            key.replace("/", "_", 1): torch.from_numpy(arrays[key])
            for key in arrays.files
            if key != "config"
        }
        for key, each in values.items():
            values[key] = each if each.is_floating_point() else each.long()
        return SimpleNamespace(config=json.loads(str(arrays["config"])), **values)

    return read
