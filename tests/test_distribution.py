"""The wheel of the sdist, installed into an empty folder and used away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout's sdist. A build writes beside the code, so it is that of a copy.

    The copy has what a Docker image is built from.
    """
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("source")
    without = shutil.ignore_patterns("tests", "__pycache__", "*.egg-info", "node_modules")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            path = ROOT / line[1:]
            if path.is_dir():
                shutil.copytree(path, copy / path.name, ignore=without)
            else:
                shutil.copy(path, copy)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], check=True, cwd=copy)
    (source,) = (copy / "dist").iterdir()
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(copy)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, cwd=copy
    )
    (wheel,) = copy.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's files, and what runs Python with it and without the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return folder, run


def test_what_the_wheel_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        about = Parser().parsestr(file.read(metadata).decode())
        names = set(file.namelist())
        commands = file.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert about["Name"] == "sgr-segmentation" and about["Description-Content-Type"]
    assert "sgr/py.typed" in names and "semask/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    for pattern in ("configs/**/*.yaml", "projects/*/configs/**/*.yaml"):
        for path in ROOT.glob(pattern):
            assert f"sgr/{path.relative_to(ROOT).as_posix()}" in names
    page = {"index.html", "explorer.js", "explorer.css"}
    assert {f"sgr/explorer/page/{name}" for name in page} <= names
    assert not any("/web/" in name for name in names)
    assert "sgr-train = sgr.__main__:run" in commands
    assert not any("/tests/" in name for name in names)


def test_commands_are_functions(wheel, installed):
    _, run = installed
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/entry_points.txt"))
        lines = [line for line in file.read(name).decode().splitlines() if line.startswith("sgr-")]
    functions = [line.split(" = ")[1].split(":") for line in lines]
    script = "import importlib\n" + "".join(
        f"assert callable(importlib.import_module({module!r}).{function})\n"
        for module, function in functions
    )
    run("-c", script)
    assert len(functions) > 10


def test_configs_of_the_package_are_found_anywhere(installed):
    folder, run = installed
    script = (
        "import sgr\n"
        "from sgr.engine import load_config\n"
        "print(sgr.__file__)\n"
        "print(load_config('configs/shapes/fcn_R50_sgr.yaml').MODEL.SEM_SEG_HEAD.NAME)\n"
    )
    file, head = run("-c", script).splitlines()[-2:]
    assert Path(file).is_relative_to(folder) and head == "FCNHead"


def test_train(installed):
    _, run = installed
    assert "--config-file" in run("-m", "sgr", "--help")
