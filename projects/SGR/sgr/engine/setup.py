"""The command line: its arguments, and the config that they make."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from itertools import count
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.config.compat import guess_version
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from ..checkpoints.model_folder import check_num_classes_of, config_of, folder_with
from ..checkpoints.sources import HUB, fetch_model_folder
from ..config import add_sgr_config
from ..data.datasets.descriptions import add_described_datasets
from ..data.loading import check_registered
from ..data.texts import compose_yaml
from ..modeling.layers.checks import check_num_classes
from ..modeling.reasoning import apply_reasoning_defaults
from .config_check import check_config, check_names, entry_fault, flat
from .console import setup_loggers

# Installed packages join by an entry point of this group: a function that adds their keys to a
# config. Its import registers their parts (backbones, heads, losses, ...).
PROJECTS_GROUP = "sgr.projects"
CHECKOUT = Path(__file__).resolve().parents[4]  # with projects/, where it is one
# Has the folder configs/: the package, if it is installed from a wheel.
PACKAGED = CHECKOUT if (CHECKOUT / "projects").is_dir() else Path(__file__).resolve().parents[1]


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments and ours: ``--with``, ``--explorer``, and two flags for safety."""
    parser = default_argument_parser()
    add_mixins_flag(parser)
    parser.add_argument(
        "--explorer",
        metavar="DIR",
        help="with --eval-only: write a token explorer of the first test set (docs/explorer.md)",
    )
    add_safety_flags(parser)
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """The ``type`` of an argument that is an integer of at least this size."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return integer


def add_mixins_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--with FILE``, which may be given several times; the files are in ``mixins``."""
    parser.add_argument(
        "--with",
        dest="mixins",
        action="append",
        default=[],
        metavar="FILE",
        help="a config to merge over --config-file, such as configs/mixins/sgr.yaml; may be given "
        "several times",
    )


def add_safety_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-pickle`` and ``--allow-unsafe-yaml``, which both default to False."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read checkpoints that need unpickling, such as Detectron2's R-101.pkl; they can run "
        "any code, so trust their source",
    )
    parser.add_argument(
        "--allow-unsafe-yaml",
        action="store_true",
        help="read configs with !!python tags, which can run any code, and fetch a _BASE_ from an "
        "address, or the model hf-hub:OWNER/NAME; so trust their source",
    )


def load_config(
    config_file: str | PathLike | Sequence[str | PathLike],
    opts: list[str] | None = None,
    *,
    allow_unsafe: bool = False,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """Merge the defaults, the config files and the options of a command line.

    It imports the installed projects, the entry points of the group "sgr.projects", and adds their
    keys to the defaults. The reasoning module that MODEL.SGR.NAME names can have defaults of its
    own: see :func:`apply_reasoning_defaults`.

    It registers the datasets that DATASETS.FILES describes. It replaces 0 for
    MODEL.SEM_SEG_HEAD.NUM_CLASSES by the number of classes of the datasets: see
    :func:`add_described_datasets`.

    Args:
        config_file: a YAML file, or several of which the later ones override the earlier ones.
            One that sets MODEL.BACKBONE.NAME to "build_sgr_backbone", as mixins/sgr.yaml, puts SGR
            on the backbone of the earlier ones, unless it sets MODEL.SGR.BACKBONE_NAME.
            The ``_BASE_`` of a file is one file or a list, relative to the file; ``configs/...``
            is one of this package's where there is no such file. "" stands for no file. A model
            folder stands for its config, with its weights as MODEL.WEIGHTS, no DATASETS.FILES and
            the default OUTPUT_DIR, and so does ``hf-hub:OWNER/NAME``, which is fetched.
        opts: key, value, key, value...
        allow_unsafe: whether to accept ``!!python`` tags in the files, and to fetch bases from
            addresses and models from the hub. Of model folders, no tag is accepted in any case.
        add_configs: functions that add the keys of other projects to a config. They are called in
            this order, before ours: their default counts where both add the same key.

    Raises:
        FileNotFoundError: if a config file, or a file in DATASETS.FILES, does not exist.
        ValueError: if a file is no config (empty, a list, not UTF-8), has tags or an address that
            are not allowed or is a base of itself; if ``opts`` contains a flag; if a key does not
            exist, or has a value that it cannot have (see
            :func:`~.config_check.check_config`); see also :func:`add_described_datasets`.
        ImportError: if an installed project cannot be imported, or a file belongs to a project in
            this checkout that is not installed.
    """
    cfg = get_cfg()
    for add_config in add_configs:
        add_config(cfg)
    add_sgr_config(cfg)
    projects = _add_projects(cfg)
    given = [config_file] if isinstance(config_file, (str, PathLike)) else config_file
    files = [local_config(fspath(file), allow_unsafe=allow_unsafe) for file in given if file]
    for file in files:
        _check_installed(file, projects)
    defaults = cfg.clone()
    _merge(cfg, files, opts or [], allow_unsafe)
    # Once more if the chosen module has other defaults, so that files and options win over them.
    if apply_reasoning_defaults(defaults, cfg.MODEL.SGR.NAME):
        cfg = defaults
        _merge(cfg, files, opts or [], allow_unsafe)
    check_config(cfg)
    add_described_datasets(cfg)
    return cfg


def local_config(config: str, *, allow_unsafe: bool = False) -> str:
    """The YAML file that a config is in: itself, or that of a model folder.

    Args:
        config: a YAML file, a model folder, or ``hf-hub:OWNER/NAME``. ``configs/...`` and
            ``projects/NAME/configs/...`` are of this package where there is no such file.
        allow_unsafe: whether to fetch a model from the hub.

    Raises:
        FileNotFoundError, ImportError: the model cannot be fetched.
        ValueError: the model may not be fetched, or the folder is no model folder, or damaged.
    """
    if config.startswith(HUB):
        if not allow_unsafe:
            raise ValueError(
                f"the model {config!r} is not fetched; if you trust where it comes from, add "
                "--allow-unsafe-yaml (allow_unsafe_yaml=True)"
            )
        config = fetch_model_folder(config)
    if not os.path.exists(config) and (PACKAGED / config).is_file():
        return str(PACKAGED / config)
    return config_of(config) if os.path.isdir(config) else config


def _merge(cfg: CfgNode, files: Iterable[str], opts: list[str], allow_unsafe: bool) -> None:
    for file in files:
        folder = folder_with(file)
        if folder is None:
            plain = cfg.MODEL.BACKBONE.NAME
            content = dict(flat(_merge_file(cfg, file, allow_unsafe)))
            # A mixin that adds SGR and names no backbone wraps the one that it finds.
            adds_sgr = content.get("MODEL.BACKBONE.NAME") == "build_sgr_backbone"
            if adds_sgr and "_sgr_" not in plain and "MODEL.SGR.BACKBONE_NAME" not in content:
                cfg.MODEL.SGR.BACKBONE_NAME = plain
            continue
        defaults = cfg.clone()
        _merge_file(cfg, file, allow_unsafe=False)  # a packaged config has no tags
        check_num_classes_of(folder, dict(flat(cfg)))
        # Paths of another machine. One would have the run write wherever a stranger says.
        cfg.OUTPUT_DIR, cfg.DATASETS.FILES = defaults.OUTPUT_DIR, defaults.DATASETS.FILES
        cfg.MODEL.WEIGHTS = str(folder)
    for key in opts[::2]:
        if str(key).startswith("--"):
            raise ValueError(f"{key} stands behind KEY VALUE options, which must come last")
    merge_options(cfg, opts)


def merge_options(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge key, value, key, value... into a config.

    Raises:
        ValueError: there is no such key, the value is of another type, the last key has none, or a
            config file stands in place of a key.
    """
    for key in opts[::2]:
        if str(key).endswith((".yaml", ".yml")):
            raise ValueError(f"{key!r} stands in place of a key: each config needs its own --with")
    if len(opts) % 2:
        raise ValueError(f"the last option {opts[-1]!r} has no value: options are KEY VALUE pairs")
    for key, value in zip(opts[::2], opts[1::2]):
        fault = entry_fault(cfg, key, value)
        if fault:
            raise ValueError(fault)
    cfg.merge_from_list(list(opts))


def _add_projects(cfg: CfgNode) -> set[str]:
    """Add the keys of all installed projects to ``cfg``, and return the projects' names."""
    projects = sorted(entry_points(group=PROJECTS_GROUP))
    for project in projects:
        try:
            add_config = project.load()
        except Exception as error:
            raise ImportError(
                f"the installed project {project.name!r} ({project.value}) cannot be imported: "
                f"{type(error).__name__}: {error}; mend it or uninstall it"
            ) from error
        add_config(cfg)
    return {project.name for project in projects}


def _check_installed(config_file: str, projects: set[str]) -> None:
    """Ask for an installation where a config is of a project that came after the last one."""
    for folder in Path(config_file).resolve().parents:
        if folder.parent == CHECKOUT / "projects":
            names = {path.parent.name for path in folder.glob("*/__init__.py")} - {"sgr"}
            if names - projects:
                raise ImportError(
                    f"{config_file!r} needs the project {', '.join(sorted(names - projects))}, "
                    "which is not installed yet: run 'make install', or 'pip install -e .'"
                )


class _AnyFiles(CfgNode):
    """Reads a config and its bases, and finds bases among the configs of this package, too."""

    @classmethod
    def _open_cfg(cls, filename: str):
        return super()._open_cfg(_packaged_base(filename))


class _LocalFiles(CfgNode):
    """The same, from this machine only; Detectron2 would also fetch files."""

    @classmethod
    def _open_cfg(cls, filename: str):
        filename = _packaged_base(filename)
        if not os.path.isfile(filename):  # an address, or a name for Detectron2's path manager
            raise ValueError(
                f"the _BASE_ {filename!r} is not a file of this machine, and is not fetched; "
                "download it, or, if you trust where it comes from, add --allow-unsafe-yaml"
            )
        return open(filename, encoding="utf-8")


def _merge_file(cfg: CfgNode, file: str, allow_unsafe: bool) -> dict[str, Any]:
    """Merge a YAML file, and the files that it names as its ``_BASE_``, into ``cfg``.

    Returns:
        The content of all of them.
    """
    _check_file(file)
    try:
        reader = _AnyFiles if allow_unsafe else _LocalFiles
        content = reader.load_yaml_with_base(file, allow_unsafe=allow_unsafe)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{file!r} or a base of it has a tag that can run code ({error.problem}); "
            "if you trust where it comes from, add --allow-unsafe-yaml"
        ) from error
    except AssertionError as error:  # a key is a group in one file, and has a value in another
        raise ValueError(f"{file!r} does not fit its _BASE_: {error}") from error
    try:
        loaded = CfgNode(content)
        if (loaded.get("VERSION") or guess_version(loaded, file)) == cfg.VERSION:
            cfg.merge_from_other_cfg(loaded)
        else:  # Detectron2 reads the file again, and brings it up to date
            cfg.merge_from_file(file, allow_unsafe=allow_unsafe)
    except Exception as error:
        for key, value in flat(content):
            fault = entry_fault(cfg, key, value)
            if fault:
                raise ValueError(f"{file!r} or a base of it: {fault}") from error
        raise ValueError(f"{file!r} cannot be merged: {error}") from error
    return content


def _packaged_base(file: str) -> str:
    """The config of this package that ``FOLDER/configs/NAME`` means if there is no such file.

    A reader gets only this path: the ``_BASE_``, joined to the folder of the file that has it.
    """
    place = file.rfind("configs/")
    packaged = PACKAGED / file[place:]
    if place < 0 or os.path.exists(file) or not packaged.is_file():
        return file
    return str(packaged)


def _check_file(file: str, users: tuple[str, ...] = ()) -> None:
    """Check that a file, and the files that it names as its ``_BASE_``, have the form of configs.

    Args:
        file: path.
        users: the files that led here by their ``_BASE_``.
    """
    named = f" (_BASE_ of {users[-1]!r})" if users else ""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no config file {file!r}{named}")
    if os.path.realpath(file) in map(os.path.realpath, users):
        raise ValueError(
            f"{file!r} or a base of it is its own base: {' -> '.join((*users, file))}; follow the "
            "files that _BASE_ names"
        )
    try:
        node = compose_yaml(file)
    except ValueError as error:
        raise ValueError(f"{file!r}{named}: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else f"holds a {node.id}"
        raise ValueError(f"{file!r}{named} {found}; a config file has lines KEY: value")
    for key, value in node.value:
        if key.value == "_BASE_":
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in bases:
                if not isinstance(base, yaml.ScalarNode):
                    raise ValueError(f"{file!r}: _BASE_ must be a file or a list of files")
                base_file = os.path.join(os.path.dirname(file), os.path.expanduser(base.value))
                if base.value.startswith("configs/"):
                    base_file = _packaged_base(base_file)
                if ":" not in base.value or os.path.isfile(base_file):  # addresses have a colon
                    _check_file(base_file, (*users, file))


def setup_config(
    args: argparse.Namespace,
    *,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """Load the config of a run, fit it to the machine, freeze it, and start OUTPUT_DIR/log.txt.

    An evaluation that names no OUTPUT_DIR gets a new folder in the default one, called after the
    config: ``output/evaluations/maskformer_R50_sgr``, then ``..._2``, and so on.

    Args:
        args: the arguments that :func:`argument_parser` has parsed.
        add_configs: see :func:`load_config`.

    Raises:
        ValueError: if MODEL.SEM_SEG_HEAD.NUM_CLASSES is 0 and no dataset gives the number; if a
            dataset is not registered; see :func:`load_config` for more.
        OSError: if OUTPUT_DIR cannot be made or written to, on a full disk, say.
    """
    # Detectron2 reads the file once more, for the log.
    args.config_file = local_config(args.config_file, allow_unsafe=args.allow_unsafe_yaml)
    cfg = load_config(
        [args.config_file, *args.mixins],
        args.opts,
        allow_unsafe=args.allow_unsafe_yaml,
        add_configs=add_configs,
    )
    # Before there is an OUTPUT_DIR.
    check_names(cfg)
    _check_registered(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST"))
    check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if args.eval_only and not args.resume and cfg.OUTPUT_DIR == get_cfg().OUTPUT_DIR:
        # One evaluation must not overwrite the results of another. All processes take the folder
        # that the main one finds free.
        folder = _free_folder(os.path.join(cfg.OUTPUT_DIR, "evaluations"), args.config_file)
        cfg.OUTPUT_DIR = comm.all_gather(folder)[0]
    if "://" in cfg.OUTPUT_DIR:  # --resume would fetch checkpoints from it
        raise ValueError(f"OUTPUT_DIR is the address {cfg.OUTPUT_DIR!r}; it must be a folder")
    _check_writable(cfg)
    setup_loggers(cfg.OUTPUT_DIR)
    fit_to_machine(cfg)
    cfg.freeze()
    return cfg


def _free_folder(root: str, config_file: str) -> str:
    path = Path(config_file)
    folder = folder_with(path)
    name = path.stem if folder is None else folder.resolve().name
    names = (f"{name}_{number}" if number > 1 else name for number in count(1))
    return next(path for path in (os.path.join(root, n) for n in names) if not os.path.exists(path))


def _check_writable(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR, and write as much to it as Detectron2 does first, its config.yaml."""
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR) as file:
            file.write(cfg.dump().encode())
            file.flush()
            os.fsync(file.fileno())  # some file systems tell only now that they are full
    except OSError as error:
        raise OSError(
            f"nothing can be written to OUTPUT_DIR {cfg.OUTPUT_DIR!r} ({error}): free space there, "
            "or set another OUTPUT_DIR"
        ) from error


def _check_registered(cfg: CfgNode, keys: Iterable[str]) -> None:
    for key in keys:
        for name in cfg.DATASETS[key]:
            check_registered(name, f"DATASETS.{key} has")


def fit_to_machine(cfg: CfgNode) -> None:
    """Change a config to what this machine can run, and log the changes.

    Without a GPU, MODEL.DEVICE becomes "cpu". Where there is one process, or no GPU, synchronized
    batch norms ("SyncBN") become ordinary ones ("BN").

    Raises:
        ValueError: if the config asks for what Detectron2 cannot do on a CPU.
    """
    logger = logging.getLogger(__name__)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("There is no GPU: running in one process on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for deformable convolutions, which Detectron2 "
            "has for GPUs only, and MODEL.DEVICE is 'cpu'; set all of its values to False"
        )
    if comm.get_world_size() == 1 or cfg.MODEL.DEVICE == "cpu":
        parts = ("RESNETS", "TIMM", "FPN", "SEM_SEG_HEAD", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
        changed = [part for part in parts if cfg.MODEL[part].NORM == "SyncBN"]
        for part in changed:
            cfg.MODEL[part].NORM = "BN"
        if changed:
            keys = ", ".join(f"MODEL.{part}.NORM" for part in changed)
            logger.info(f"One process: SyncBN becomes BN in {keys}")
