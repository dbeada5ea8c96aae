"""The Detectron2 installer, on synthetic archives and without a network."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"


def load_installer():
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installer = load_installer()
Edit = installer.Edit


@pytest.fixture
def bare_environment(tmp_path):
    """An interpreter with pip and nothing else, and the environment variables to run it with."""
    pip = pytest.importorskip("pip")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    # A link to our pip alone: it is faster than a new one, and its neighbours stay invisible.
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment.update(PYTHONPATH=str(packages), PIP_CONFIG_FILE=os.devnull)
    return tmp_path / "venv" / "bin" / "python", environment


def run(python, environment, *arguments):
    return subprocess.run(
        [str(python), str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
    )


def make_archive(folder, files):
    """Write a source archive of the real one's shape; return its path."""
    path = folder / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo("pb1-detectron2-0.6/" + name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_edit_replaces_every_occurrence_and_notes_its_reason_once():
    files = {"a.py": b"x = np.int\ny = np.int\n", "b.py": b"np.int"}
    edits = [Edit("a.py", "np.int", "int", "gone"), Edit("a.py", "x =", "z =", "gone")]
    edited = installer.apply_edits(files, edits)
    assert edited["a.py"].decode().startswith("z = int\ny = int\n")
    assert edited["a.py"].decode().count("gone") == 1
    assert edited["b.py"] == files["b.py"]
    assert files["a.py"] == b"x = np.int\ny = np.int\n"


@pytest.mark.parametrize("path", ["a.py", "missing.py"])
def test_edit_without_a_match_fails_and_names_the_rule(path):
    with pytest.raises(installer.InstallError, match=r"(?s)no match in {}.*np\.float".format(path)):
        installer.apply_edits({"a.py": b"x = 1\n"}, [Edit(path, "np.float", "float", "gone")])


def test_missing_operator_explains_itself_only_when_used():
    module = {}
    exec(installer.COMPILED, module)  # as in an environment without detectron2._C
    if module["HAS_COMPILED"]:
        pytest.skip("this environment has the compiled extension")
    with pytest.raises(RuntimeError, match="'deform_conv_forward' needs .* compiled extension"):
        module["_C"].deform_conv_forward()
    assert not hasattr(module["_C"], "__wrapped__")


def test_sources_are_laid_out_as_in_the_official_package(tmp_path):
    archive = make_archive(
        tmp_path,
        {
            "LICENSE": "terms",
            "setup.py": "raise SystemExit",
            "detectron2/layers/nms.py": "a",
            "detectron2/model_zoo/configs/Base.yaml": "b",
            "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "c",
            "tools/train_net.py": "d",
        },
    )
    assert installer.read_sources(archive) == {
        installer.DIST_INFO + "/LICENSE": b"terms",
        "detectron2/layers/nms.py": b"a",
        "detectron2/model_zoo/configs/Base.yaml": b"b",
        "detectron2/projects/panoptic_deeplab/__init__.py": b"c",
    }


def test_wrong_checksum_is_refused(tmp_path):
    archive = make_archive(tmp_path, {"LICENSE": "other"})
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    installer.verify(archive, expected=actual)
    with pytest.raises(installer.InstallError, match=r"(?s)wrong SHA-256.*" + actual):
        installer.verify(archive)


def test_wheel_is_installed_listed_and_removed_by_pip(tmp_path, bare_environment):
    python, environment = bare_environment
    files = {"detectron2/__init__.py": b"answer = 42\n", installer.DIST_INFO + "/LICENSE": b"terms"}
    wheel = installer.build_wheel(files, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(installer.DIST_INFO + "/METADATA").decode()
    assert "Requires-Dist: fvcore>=0.1.5\n" in metadata

    def pip(*arguments):
        command = [python, "-m", "pip", "--no-input", *arguments]
        return subprocess.check_output(command, env=environment, text=True)

    pip("install", "--no-deps", "--no-index", str(wheel))
    assert "detectron2" in pip("list")
    result = run(python, environment)
    assert result.returncode == 0
    assert "Detectron2 {} is there already, in ".format(installer.VERSION) in result.stdout
    pip("uninstall", "--yes", "detectron2")
    assert not list((tmp_path / "venv").rglob("detectron2*"))


def test_foreign_installation_is_left_alone(tmp_path, bare_environment):
    python, environment = bare_environment
    package = tmp_path / "checkout" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    environment["PYTHONPATH"] += os.pathsep + str(package.parent)
    result = run(python, environment)
    assert result.returncode == 0
    assert "of unknown version is there already, in {};".format(package) in result.stdout


@pytest.mark.parametrize(
    "settings",
    [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": "file:///nonexistent/simple"}],
    ids=["no index", "empty index"],
)
def test_no_network_is_explained_and_leaves_nothing_behind(tmp_path, bare_environment, settings):
    python, environment = bare_environment
    result = run(python, {**environment, **settings})
    assert result.returncode == 1
    assert "Detectron2 was not installed. pip could not download" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "venv").rglob("detectron2*"))


def test_wrong_file_on_the_index_is_not_installed(tmp_path, bare_environment):
    python, environment = bare_environment
    make_archive(tmp_path, {"setup.py": "raise SystemExit('must not run')"})
    result = run(python, {**environment, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)})
    assert result.returncode == 1
    assert "has the wrong SHA-256 checksum and was not used" in result.stderr
    assert "must not run" not in result.stderr
    assert not list((tmp_path / "venv").rglob("detectron2*"))


def test_imports_show_no_warnings_of_torch():
    version, _ = installer.find_installed() or ("none", None)
    if version != installer.VERSION:
        pytest.skip(f"Detectron2 is {version}, not this script's {installer.VERSION}")
    code = "import detectron2.data, detectron2.modeling"
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torch.jit.script" not in done.stderr


def test_earlier_edition_is_replaced_and_others_are_not(monkeypatch, capsys):
    attempts = []
    monkeypatch.setattr(installer, "install", attempts.append)
    for version, replaced in [("0.6+py0", True), (installer.VERSION, False), ("0.6+cu111", False)]:
        monkeypatch.setattr(installer, "find_installed", lambda: (version, Path("somewhere")))
        attempts.clear()
        assert installer.main([]) == 0
        assert bool(attempts) == replaced, version
