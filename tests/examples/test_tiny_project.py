"""Packages that join by an entry point, the example project among them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from sgr.engine import load_config, setup
from tiny_model import CHECKOUT, tiny_options

EXAMPLE = CHECKOUT / "examples" / "tiny_project"


def install(folder, name, module, entry_point):
    """A package with an entry point, as an installer leaves it in ``folder``."""
    (folder / f"{name}.py").write_text(module)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{setup.PROJECTS_GROUP}]\n{name} = {entry_point}\n")


def test_installed_example_trains_and_is_evaluated(tiny_shapes_root, tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *flags, str(source)], check=True)
    # PyPI's "sgr" is another package.
    (about,) = site.glob("*.dist-info/METADATA")
    assert "Requires-Dist: sgr-segmentation\n" in about.read_text()

    sources = str(CHECKOUT / "projects" / "SGR")
    path = os.pathsep.join([str(site), sources, os.environ.get("PYTHONPATH", "")])
    options = tiny_options(
        OUTPUT_DIR=tmp_path / "run",
        SOLVER__MAX_ITER=2,
        TEST__EVAL_PERIOD=2,
        MODEL__TINY_PROJECT__CHANNELS=16,
    )
    config = EXAMPLE / "configs" / "shapes.yaml"
    run = subprocess.run(
        [sys.executable, "train_net.py", "--config-file", str(config), *options],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": str(tiny_shapes_root)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    for part in ("PatchBackbone", "CosineClassifier", "FocalLoss"):  # the model, as it is printed
        assert part in log
    assert '"total_loss"' in (tmp_path / "run" / "metrics.json").read_text()
    results = json.loads((tmp_path / "run" / "inference" / "results.json").read_text())
    assert results.keys() == {"sem_seg", "boundary"}
    assert 0 <= results["boundary"]["accuracy"] <= 100


def test_keys_of_an_installed_project(tmp_path, monkeypatch):
    module = "def add(cfg):\n    cfg.MODEL.STRANGER = cfg.MODEL.SGR.NUM_CONCEPTS\n"
    install(tmp_path, "stranger", module, "stranger:add")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_config("", ["MODEL.STRANGER", "3"]).MODEL.STRANGER == 3


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "AttributeError: module 'broken_project' has no attribute 'add'"),
    ],
)
def test_project_that_cannot_be_imported_is_named(module, message, tmp_path, monkeypatch):
    install(tmp_path, "broken_project", module, "broken_project:add")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_project", raising=False)
    with pytest.raises(ImportError, match=f"'broken_project' .* cannot be imported: {message}"):
        load_config("")


def test_project_that_came_after_the_installation(tmp_path, monkeypatch):
    config = tmp_path / "projects" / "Late" / "configs" / "a.yaml"
    for file in (config, tmp_path / "projects" / "Late" / "late" / "__init__.py"):
        file.parent.mkdir(parents=True)
        file.write_text("SEED: 3\n" if file == config else "")
    assert load_config(str(config)).SEED == 3  # of another checkout
    monkeypatch.setattr(setup, "CHECKOUT", tmp_path)
    with pytest.raises(ImportError, match="needs the project late, .*'make install'"):
        load_config(str(config))
    monkeypatch.setattr(setup, "_add_projects", lambda cfg: {"late"})
    assert load_config(str(config)).SEED == 3


def test_setup_finds_projects(tmp_path):
    for package in ("SGR/sgr", "Late/late", "Late/late/parts"):
        (tmp_path / "projects" / package).mkdir(parents=True)
        (tmp_path / "projects" / package / "__init__.py").touch()
    for name in ("setup.py", "README.md"):
        shutil.copy(CHECKOUT / name, tmp_path)
    subprocess.run([sys.executable, "setup.py", "--quiet", "egg_info"], cwd=tmp_path, check=True)
    about = tmp_path / "sgr_segmentation.egg-info"
    assert (about / "top_level.txt").read_text().split() == ["late", "sgr"]
    entry_points = (about / "entry_points.txt").read_text()
    assert entry_points.strip().endswith("[sgr.projects]\nlate = late:add_late_config")
    assert "projects/Late/late/parts/__init__.py" in (about / "SOURCES.txt").read_text()
