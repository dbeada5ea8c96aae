"""Where code of a file could run, or something is fetched: every place is known.

A new place needs a line below, with the reason why no file or config of a stranger reaches it.
"""

import io
import re
from pathlib import Path

import detectron2
import fvcore
import iopath
import pytest
import yaml

from sgr.engine import load_config
from sgr.engine.setup import argument_parser, setup_config
from tiny_model import CONFIG

ROOT = Path(__file__).parents[1]
SINKS = re.compile(
    r"""pickle\.loads?\(|Unpickler\(|cloudpickle\.loads?|torch\.load\(|torch\.jit\.load\(
    |torch\.hub\.|load_state_dict_from_url|model_zoo\.load_url
    |np\.load\(|np\.loadtxt\(|allow_pickle=True|joblib\.load|marshal\.loads?\(|shelve\.open
    |unsafe_load|full_load|UnsafeLoader|FullLoader|yaml\.load\(
    |(?<![.\w])eval\((?!\))|(?<![.\w])exec\(|(?<![.\w])compile\(|__import__\(|import_module\(
    |spec_from_file_location|urlopen|urlretrieve|requests\.(?:get|post)|hf_hub_download
    |snapshot_download
    |HTTPURLHandler|OneDrivePathHandler|os\.system|shell=True|subprocess\.\w+\(|os\.popen""",
    re.VERBOSE,
)
OURS = {
    "projects/SGR/sgr/checkpoints/checkpointer.py: torch.load(": "weights_only by the flag",
    "projects/SGR/sgr/checkpoints/sources.py: hf_hub_download": "MODEL.WEIGHTS, read safely",
    "projects/SGR/sgr/checkpoints/sources.py: snapshot_download": "behind --allow-unsafe-yaml",
    "projects/SGR/sgr/data/proposals.py: Unpickler(": "makes arrays only",
    "projects/SGR/sgr/evaluation/__init__.py: import_module(": "names in the source",
    "tools/experiments/bootstrap.py: np.load(": "without pickles, which is NumPy's default",
    "tools/experiments/processes.py: subprocess.Popen(": "the commands of a list of runs",
    "tools/gpu_report.py: subprocess.Popen(": "our own tools",
    "tools/install_detectron2.py: shell=True": "a text of Detectron2 that it replaces",
    "tools/install_detectron2.py: subprocess.call(": "pip",
    "tools/install_detectron2.py: subprocess.check_output(": "a text of Detectron2",
    "tools/quickstart.py: subprocess.Popen(": "our own tools",
}
# Of Detectron2 and what it builds on. Versions differ, so not all of them must be there.
THEIRS = {
    "detectron2/checkpoint/detection_checkpoint.py: pickle.load(": "SafeCheckpointer: the flag",
    "detectron2/checkpoint/detection_checkpoint.py: torch.load(": "SafeCheckpointer reads itself",
    "detectron2/checkpoint/detection_checkpoint.py: HTTPURLHandler": "MODEL.WEIGHTS",
    "detectron2/config/lazy.py: exec(": "lazy configs are Python, and no tool of ours takes them",
    "detectron2/config/lazy.py: compile(": "as above",
    "detectron2/config/lazy.py: unsafe_load": "as above",
    "detectron2/config/instantiate.py: import_module(": "lazy configs",
    "detectron2/data/build.py: pickle.load(": "proposals: sgr.data.proposals stands before it",
    "detectron2/data/common.py: pickle.loads(": "records that the same process has pickled",
    "detectron2/data/datasets/pascal_voc.py: np.loadtxt(": "text",
    "detectron2/export/caffe2_modeling.py: torch.load(": "nothing of ours imports it",
    "detectron2/utils/collect_env.py: import_module(": "packages that are installed",
    "detectron2/utils/collect_env.py: shell=True": "nvcc -V",
    "detectron2/utils/collect_env.py: subprocess.check_output(": "cuobjdump, the compiler",
    "detectron2/utils/comm.py: pickle.loads(": "between the processes of one training",
    "detectron2/utils/env.py: import_module(": "the environment variable DETECTRON2_ENV_MODULE",
    "detectron2/utils/env.py: spec_from_file_location": "as above",
    "detectron2/utils/file_io.py: HTTPURLHandler": "MODEL.WEIGHTS; bases and proposals are refused",
    "detectron2/utils/file_io.py: OneDrivePathHandler": "as above",
    "detectron2/utils/serialize.py: cloudpickle.loads": "functions between processes",
    "detectron2/utils/testing.py: torch.jit.load(": "tests of Detectron2",
    "fvcore/common/checkpoint.py: torch.load(": "SafeCheckpointer reads itself",
    "fvcore/common/checkpoint.py: HTTPURLHandler": "MODEL.WEIGHTS",
    "fvcore/common/config.py: unsafe_load": "behind --allow-unsafe-yaml",
    "fvcore/common/config.py: yaml.load(": "a text",
    "fvcore/common/download.py: urlopen": "by the handlers above",
    "fvcore/common/download.py: urlretrieve": "as above",
    "fvcore/common/file_io.py: HTTPURLHandler": "fvcore's own manager, which nothing here uses",
    "fvcore/common/file_io.py: OneDrivePathHandler": "as above",
    "iopath/common/download.py: urlopen": "by the handlers above",
    "iopath/common/download.py: urlretrieve": "as above",
    "iopath/common/file_io.py: HTTPURLHandler": "its definition",
    "iopath/common/file_io.py: OneDrivePathHandler": "its definition",
}


def sinks_in(folder, root):
    found = set()
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.relative_to(root).parts:
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            code = line.partition("#")[0]
            name = file.relative_to(root).as_posix()
            found.update(f"{name}: {sink}" for sink in SINKS.findall(code))
    return found


def test_every_sink_of_ours_is_known():
    found = set()
    for folder in ("projects", "tools", "datasets", "examples"):
        found |= sinks_in(ROOT / folder, ROOT)
    text = (ROOT / "train_net.py").read_text()
    found |= {f"train_net.py: {sink}" for sink in SINKS.findall(text)}
    assert found == OURS.keys(), "see the text at the top of this file"


@pytest.mark.parametrize("package", [detectron2, fvcore, iopath])
def test_every_sink_of_theirs_is_known(package):
    folder = Path(package.__path__[0])
    found = {
        sink
        for sink in sinks_in(folder, folder.parent)
        # Detectron2's sources also have projects and tests, which are not imported.
        if not re.match(r"detectron2/(projects|model_zoo/configs)/", sink)
    }
    assert found <= THEIRS.keys(), "see the text at the top of this file"


@pytest.mark.parametrize("base", ["http://localhost:9/a.yaml", "https://localhost:9/a.yaml"])
@pytest.mark.parametrize("form", ["_BASE_: {}", "_BASE_: [{}]"])
def test_a_base_is_not_fetched(tmp_path, base, form):
    (tmp_path / "evil.yaml").write_text(form.format(base))
    (tmp_path / "outer.yaml").write_text("_BASE_: evil.yaml\n")
    for name in ("evil.yaml", "outer.yaml"):
        with pytest.raises(ValueError, match="_BASE_ .*localhost.*--allow-unsafe-yaml"):
            load_config(str(tmp_path / name))


@pytest.mark.parametrize("base", ["detectron2://a.yaml", "hf-hub:a/b", "package://a/b"])
def test_nor_by_a_prefix_of_the_path_manager(tmp_path, monkeypatch, base):
    """A config of the current folder has no folder in its name that would stand before the base."""
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text(yaml.safe_dump({"_BASE_": base}))
    with pytest.raises(ValueError, match="--allow-unsafe-yaml"):
        load_config("evil.yaml")


def test_with_the_flag_it_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "iopath.common.file_io.HTTPURLHandler._open",
        lambda self, path, *_, **__: asked.append(path) or io.StringIO("VERSION: 2\nSEED: 5\n"),
    )
    (tmp_path / "a.yaml").write_text("_BASE_: http://localhost:9/a.yaml\n")
    assert load_config(str(tmp_path / "a.yaml"), allow_unsafe=True).SEED == 5
    assert asked


def test_nothing_is_resumed_from_an_address():
    args = argument_parser().parse_args(
        ["--config-file", str(CONFIG), "OUTPUT_DIR", "http://localhost:9/run"]
    )
    with pytest.raises(ValueError, match="OUTPUT_DIR is the address"):
        setup_config(args)


def test_weights_of_timm_come_by_the_safe_way_only():
    pytest.importorskip("timm")
    from sgr.modeling.backbone.timm_backbone import TimmBackbone

    with pytest.raises(ValueError, match=r"checkpoint_path.*MODEL.WEIGHTS"):
        TimmBackbone("resnet18", options={"checkpoint_path": "evil.pth"})
