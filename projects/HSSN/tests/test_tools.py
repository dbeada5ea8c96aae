"""The tools, on small sizes."""

import importlib.util
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_losses_are_measured(capsys):
    spec = importlib.util.spec_from_file_location("losses", TOOLS / "benchmark_losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main("--size 64 128 --repeat 1 --dataset shapes_sem_seg_train".split())
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[1]) for row in rows] == [9, 12, 12, 12, 12]
    plain, *others = [float(row[3]) for row in rows]
    # Three arrays of the classes' logits, and at most ten of the nodes'.
    assert plain >= 64 * 128 * 9 * 4 * 2 / 2**20 - 1
    assert max(others) < 64 * 128 * 12 * 4 * 10 / 2**20 + 1
