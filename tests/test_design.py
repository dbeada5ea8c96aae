"""The table in docs/design.md that says where each sentence of the paper is in the code."""

import importlib
import re
from functools import reduce

import pytest

from tiny_model import CHECKOUT

DESIGN = (CHECKOUT / "docs" / "design.md").read_text()
TABLE = DESIGN.split("## The paper, sentence by sentence")[1].split("\n## ")[0]
ROWS = [line.split("|")[1:-1] for line in TABLE.splitlines() if line.startswith("|")][2:]
NAMES = sorted({name for row in ROWS for cell in row[1:] for name in re.findall("`([^`]+)`", cell)})


def find(name):
    """The object of a dotted name, whose first parts are a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return reduce(getattr, parts[length:], found)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_named_objects_exist(name, monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    assert callable(find(name if name.startswith("benchmarks.") else f"sgr.{name}")) or (
        name.endswith(".probabilities")  # a property
    )


def test_the_table_has_all_equations():
    words = " ".join(row[0] for row in ROWS)
    for number in range(1, 8):
        assert f"Eq. {number}" in words
    assert len(NAMES) > 25


def test_contributing_names_what_exists():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    package = CHECKOUT / "projects" / "SGR" / "sgr"
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    for name in re.findall(r"`(\w+_REGISTRY|[A-Z][a-z]\w+[A-Z]\w+)`", text):
        assert re.search(rf"\b{name}\b", source), name
    for part in re.findall(r"`(modeling/\w+|evaluation|data/datasets)/(?:NAME\.py)?", text):
        assert (package / part).is_dir(), part
