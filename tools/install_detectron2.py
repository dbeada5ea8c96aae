#!/usr/bin/env python3
"""Install Detectron2 v0.6 as pure Python, without a compiler.

Detectron2 is not on PyPI under its own name, and its own set-up compiles C++ and CUDA code that
SGR never calls. PyPI has a source archive, ``pb1-detectron2==0.6``, whose Python files are those
of the v0.6 tag. This script fetches the archive with pip, checks its SHA-256, applies the edits
listed in ``EDITS`` (v0.6 predates NumPy 1.24, Pillow 10, Python 3.11 and torch 2), packs the
result as an ordinary wheel named ``detectron2`` and lets pip install that. ``pip list`` shows it
and ``pip uninstall detectron2`` removes it.

Where Detectron2 can already be imported, nothing is done: SGR runs on official builds too.

    python tools/install_detectron2.py [--constraint constraints.txt]

Only the standard library and pip are needed: the script runs before torch is there.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "pb1-detectron2-0.6"
REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# The local tag says "v0.6, Python only, edition 2 of the edits below". Raise the edition when the
# edits change: an older edition is then replaced, while foreign installations are left alone.
OUR_EDITIONS = "0.6+py"
VERSION = OUR_EDITIONS + "2"
DIST_INFO = f"detectron2-{VERSION}.dist-info"

# Path in the archive -> path in the wheel, as in Detectron2's own set-up.
LAYOUT = {
    "LICENSE": DIST_INFO + "/LICENSE",
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# v0.6's own list, without what served only Caffe2 (future, pydot) and without black, which only
# LazyConfig.to_py() uses and whose old pin cannot be installed beside today's packages. The upper
# bounds on fvcore and iopath are dropped: the present releases keep the interface.
REQUIRES = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)

METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: {version}
Summary: Detectron2 v0.6, Python sources only, edited to run on current Python, NumPy and torch
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache 2.0
Requires-Python: >=3.10
{requires}
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: SGR tools/install_detectron2.py
Root-Is-Purelib: true
Tag: py3-none-any
"""

# pip asks a source archive's build backend for its metadata even when it only downloads. The
# archive's own set-up cannot answer: it imports torch, wants the missing C++ files, and names a
# direct URL that recent pip refuses. This stand-in answers in its place, so that no code of the
# archive runs before its checksum is known; index, mirror, proxy and certificates stay pip's.
STAND_IN_BACKEND = """\
from pathlib import Path

class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        info = Path(directory, "pb1_detectron2-0.6.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\\nName: pb1-detectron2\\nVersion: 0.6\\n"
        )
        return info.name
"""

COMPILED = '''\
"""The compiled operators (``detectron2._C``), or a stand-in that explains why they are missing."""

try:
    from detectron2 import _C

    HAS_COMPILED = True
except ImportError:
    HAS_COMPILED = False

    class _Missing:
        def __getattr__(self, name):
            if name.startswith("__"):  # copy, pickle and inspect probe for these
                raise AttributeError(name)
            raise_missing(name)

    _C = _Missing()


def raise_missing(name):
    raise RuntimeError(
        f"The operator '{name}' needs Detectron2's compiled extension (detectron2._C), which this "
        "Python-only installation does not have. Rotated boxes and deformable convolutions need "
        "it; to use them, uninstall this package and build Detectron2 from its own sources."
    )
'''

ADDED_FILES = {"detectron2/_compiled.py": COMPILED}


class Edit(NamedTuple):
    """Replace every ``old`` in the wheel's file ``path``, which must hold at least one."""

    path: str
    old: str
    new: str
    why: str


NO_EXTENSION = "the compiled extension is optional"
QUIET_SCRIPTS = "torch.jit.script is deprecated, and whoever imports this cannot help it"
NUMPY_ALIAS = "NumPy 1.24 removed its aliases of Python's types"

EDITS = (
    # --- NumPy, Pillow, Python ---------------------------------------------------------------
    Edit("detectron2/data/build.py", "dtype=np.int", "dtype=int", NUMPY_ALIAS),
    Edit("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", NUMPY_ALIAS),
    Edit("detectron2/evaluation/pascal_voc_evaluation.py", "(np.bool)", "(bool)", NUMPY_ALIAS),
    Edit("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", NUMPY_ALIAS),
    Edit("detectron2/evaluation/sem_seg_evaluation.py", "np.float)", "float)", NUMPY_ALIAS),
    Edit("detectron2/structures/masks.py", "np.bool)", "bool)", NUMPY_ALIAS),
    Edit("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)", NUMPY_ALIAS),
    Edit("detectron2/utils/visualizer.py", "(np.bool)", "(bool)", NUMPY_ALIAS),
    Edit(
        "detectron2/layers/mask_ops.py",
        "np.array(mask, copy=False)",
        "np.asarray(mask)",
        "NumPy 2 raises where copy=False cannot be kept",
    ),
    Edit(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Image.BILINEAR",
        "Pillow 10 removed the old name",
    ),
    Edit(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.sample(tuple(self._fallback_candidates), k=1)[0]",
        "Python 3.11 no longer samples from a set",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "recent setuptools no longer brings pkg_resources",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
        "recent setuptools no longer brings pkg_resources",
    ),
    # --- torch -------------------------------------------------------------------------------
    Edit(
        "detectron2/engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        "torch 2's own schedulers no longer derive from the old base, so their state was not saved",
    ),
    Edit(
        "detectron2/engine/train_loop.py",
        "from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()",
        'from torch.amp import GradScaler\n\n            grad_scaler = GradScaler("cuda")',
        "torch.cuda.amp is deprecated",
    ),
    Edit(
        "detectron2/engine/train_loop.py",
        "from torch.cuda.amp import autocast",
        "from torch.amp import autocast",
        "torch.cuda.amp is deprecated",
    ),
    Edit(
        "detectron2/engine/train_loop.py",
        "with autocast():",
        'with autocast("cuda"):',
        "torch.cuda.amp is deprecated",
    ),
    Edit(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        "torch warns where the index order is not named",
    ),
    Edit(
        "detectron2/projects/panoptic_deeplab/post_processing.py",
        "torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n    )",
        "torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n"
        '        indexing="ij",\n    )',
        "torch warns where the index order is not named",
    ),
    Edit(
        "detectron2/utils/comm.py",
        "    storage = torch.ByteStorage.from_buffer(buffer)\n"
        "    tensor = torch.ByteTensor(storage).to(device=device)",
        "    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)",
        "torch deprecated typed storages",
    ),
    Edit(
        "detectron2/__init__.py",
        "setup_environment()\n",
        "import warnings\n\n"
        "setup_environment()\n\n"
        "with warnings.catch_warnings():\n"
        '    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)\n'
        "    import fvcore.nn  # it scripts functions when it is imported\n",
        QUIET_SCRIPTS,
    ),
    Edit(
        "detectron2/modeling/__init__.py",
        "from detectron2.layers import ShapeSpec\n",
        "import warnings\n\n"
        "from detectron2.layers import ShapeSpec\n\n"
        "with warnings.catch_warnings():\n"
        '    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)\n'
        "    from . import box_regression  # it scripts classes when it is imported\n",
        QUIET_SCRIPTS,
    ),
    # --- the compiled extension --------------------------------------------------------------
    Edit(
        "detectron2/layers/deform_conv.py",
        "from detectron2 import _C",
        "from detectron2._compiled import _C",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/layers/roi_align_rotated.py",
        "from detectron2 import _C",
        "from detectron2._compiled import _C",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/layers/rotated_boxes.py",
        "from detectron2 import _C",
        "from detectron2._compiled import _C",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/layers/nms.py",
        "from torchvision.ops import nms  # BC-compat\n",
        "from torchvision.ops import nms  # BC-compat\n\n"
        "from detectron2._compiled import HAS_COMPILED, raise_missing\n",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated(",
        '    if not HAS_COMPILED:\n        raise_missing("nms_rotated")\n'
        "    return torch.ops.detectron2.nms_rotated(",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/evaluation/fast_eval_api.py",
        "from detectron2 import _C",
        "from detectron2._compiled import _C, HAS_COMPILED",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/evaluation/fast_eval_api.py",
        "        tic = time.time()\n\n        p = self.params",
        "        if not HAS_COMPILED:\n"
        '            logger.info("No compiled COCO evaluation here: using that of pycocotools.")\n'
        "            return super().evaluate()\n"
        "        tic = time.time()\n\n        p = self.params",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/evaluation/fast_eval_api.py",
        '        logger.info("Accumulating evaluation results...")',
        "        if not HAS_COMPILED:\n"
        "            return super().accumulate()\n"
        '        logger.info("Accumulating evaluation results...")',
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/utils/collect_env.py",
        'f"not built correctly: {e}"',
        'f"not available: {e}"',
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/utils/collect_env.py",
        "subprocess.check_output(\"'{}' --version\".format(cxx), shell=True)",
        "subprocess.check_output(\n"
        "                    \"'{}' --version\".format(cxx),\n"
        "                    shell=True,\n"
        "                    stderr=subprocess.DEVNULL,\n"
        "                )",
        "a machine without a compiler is no reason for the shell to complain",
    ),
    # --- packages that PyPI lacks ------------------------------------------------------------
    Edit(
        "detectron2/projects/panoptic_deeplab/dataset_mapper.py",
        "from panopticapi.utils import rgb2id\n",
        "",
        "panopticapi is not on PyPI; only this mapper's call needs it",
    ),
    Edit(
        "detectron2/projects/panoptic_deeplab/dataset_mapper.py",
        "        targets = self.panoptic_target_generator(",
        "        from panopticapi.utils import rgb2id\n\n"
        "        targets = self.panoptic_target_generator(",
        "panopticapi is not on PyPI; only this mapper's call needs it",
    ),
    Edit(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n"
        "    from .api import *\n"
        "except ModuleNotFoundError as error:\n"
        '    if error.name.partition(".")[0] not in ("caffe2", "onnx"):\n'
        "        raise\n",
        "Caffe2 is gone from torch; tracing and scripting do not need it",
    ),
)


class InstallError(Exception):
    """A failure to explain to the user; nothing has been installed."""


def find_installed() -> tuple[str, Path] | None:
    """Return (version, folder) of the importable Detectron2, without importing it, or None."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: a mere folder of that name, no package
        return None
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return version, Path(spec.origin).parent


def pip(*arguments: str, **environment: str) -> int:
    """Run this interpreter's pip, its messages going to the terminal; return its exit status."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.call(command, env={**os.environ, **environment})


def download(folder: Path) -> Path:
    """Have pip download the source archive into ``folder``; return the file."""
    backend = folder / "backend"
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools" / "__init__.py").touch()
    (backend / "setuptools" / "build_meta.py").write_text(STAND_IN_BACKEND)
    search_path = [str(backend)] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    status = pip(
        *("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)),
        *("--use-pep517", "--no-build-isolation", REQUIREMENT),
        PYTHONPATH=os.pathsep.join(filter(None, search_path)),
    )
    archives = list(folder.glob(ARCHIVE + ".*"))
    if status != 0 or len(archives) != 1:
        raise InstallError(
            f"pip could not download {REQUIREMENT}; its messages are above. Is the network "
            "reachable, and are pip's index, proxy and certificate settings right?"
        )
    return archives[0]


def verify(archive: Path, expected: str = SHA256) -> None:
    """Raise unless the file is the one these edits were written for."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{archive.name} has the wrong SHA-256 checksum and was not used.\n"
            f"  expected {expected}\n  got      {actual}\n"
            "The index or mirror serves another file."
        )


def read_sources(archive: Path) -> dict[str, bytes]:
    """Return {path in the wheel: content} for the archive's files that ``LAYOUT`` names."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            for source, target in LAYOUT.items():
                if member.isfile() and name.startswith(source):
                    files[target + name[len(source) :]] = tar.extractfile(member).read()
    return files


def apply_edits(files: dict[str, bytes], edits=EDITS) -> dict[str, bytes]:
    """Return a copy of ``files`` with all edits made and, as the licence asks, noted in each."""
    files = dict(files)
    reasons = {}
    for edit in edits:
        text = files.get(edit.path, b"").decode()
        if edit.old not in text:
            raise InstallError(f"An edit found no match in {edit.path}:\n{edit.old}")
        files[edit.path] = text.replace(edit.old, edit.new).encode()
        reasons.setdefault(edit.path, {})[edit.why] = None  # a set that keeps its order
    for path, whys in reasons.items():
        note = "\n# Changed by SGR's tools/install_detectron2.py: {}.\n".format("; ".join(whys))
        files[path] += note.encode()
    return files


def build_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write ``files`` and their metadata as a wheel into ``folder``; return the wheel."""
    requires = "\n".join("Requires-Dist: " + requirement for requirement in REQUIRES)
    metadata = METADATA.format(version=VERSION, requires=requires)
    files = {
        **files,
        DIST_INFO + "/METADATA": metadata.encode(),
        DIST_INFO + "/WHEEL": WHEEL.encode(),
    }
    record_path = DIST_INFO + "/RECORD"
    record = [record_path + ",,"]
    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record.append(f"{path},sha256={digest.decode()},{len(content)}")
            archive.writestr(path, content)
        archive.writestr(record_path, "\n".join(record) + "\n")
    return wheel


def install(constraint: str | None) -> None:
    """Download, check, edit, pack and install; raise before anything is installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"Downloading {REQUIREMENT} ...", flush=True)
        archive = download(folder)
        verify(archive)
        files = apply_edits(read_sources(archive))
        files.update((path, text.encode()) for path, text in ADDED_FILES.items())
        wheel = build_wheel(files, folder)
        print(f"Made {len(EDITS)} edits; installing {wheel.name} ...", flush=True)
        options = ["--constraint", constraint] if constraint else []
        if pip("install", "--quiet", *options, str(wheel)) != 0:
            raise InstallError(f"pip could not install {wheel.name}; see its messages.")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--constraint", metavar="FILE", help="pip constraints for its dependencies")
    args = parser.parse_args(argv)

    installed = find_installed()
    if installed is not None:
        version, folder = installed
        ours_but_older = version.startswith(OUR_EDITIONS) and version != VERSION
        if not ours_but_older:
            print(f"Detectron2 {version} is there already, in {folder}; nothing to do.")
            return 0
        print(f"Replacing Detectron2 {version}, an earlier edition of this script's.")
    try:
        install(args.constraint)
    except InstallError as error:
        print(f"Detectron2 was not installed. {error}", file=sys.stderr)
        return 1
    print(f"Installed Detectron2 {VERSION} for {sys.executable}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
