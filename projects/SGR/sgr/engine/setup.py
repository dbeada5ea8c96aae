"""The command line: its arguments, the config they make, and the processes they start."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_sgr_config
from ..data.datasets.descriptions import add_described_datasets
from ..modeling.layers.checks import check_num_classes

__all__ = [
    "add_safety_flags",
    "argument_parser",
    "fit_to_machine",
    "launch",
    "load_config",
    "setup_config",
]


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and the two that let a file of a stranger run code."""
    parser = default_argument_parser()
    add_safety_flags(parser)
    return parser


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
        help="read configs with !!python tags; they can run any code, so trust their source",
    )


def load_config(
    config_file: str,
    opts: list[str] | None = None,
    *,
    allow_unsafe: bool = False,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """Detectron2's defaults, ours, a file's, and the command line's.

    The datasets that DATASETS.FILES describes are registered, and MODEL.SEM_SEG_HEAD.NUM_CLASSES 0
    becomes the number of classes of the data: see :func:`add_described_datasets`.

    Args:
        config_file: YAML; "" for the defaults.
        opts: key, value, key, value...
        allow_unsafe: accept ``!!python`` tags.
        add_configs: functions of other projects that add their keys to a config, in their order;
            where a key is ours too, their default counts.

    Raises:
        FileNotFoundError: if there is no such file, or none of those in DATASETS.FILES.
        ValueError: if the file has tags that are not allowed, or a flag stands among ``opts``; or
            see :func:`add_described_datasets`.
        KeyError: for a key that does not exist.
    """
    cfg = get_cfg()
    for add_config in add_configs:
        add_config(cfg)
    add_sgr_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"there is no config file {config_file!r}")
        try:
            cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"{config_file!r} or a base of it has a tag that can run code ({error.problem}); "
                "if you trust where it comes from, add --allow-unsafe-yaml"
            ) from error
    opts = opts or []
    for key in opts[::2]:
        if key.startswith("--"):
            raise ValueError(f"{key} stands behind KEY VALUE options, which must come last")
    cfg.merge_from_list(opts)
    add_described_datasets(cfg)
    return cfg


def setup_config(
    args: argparse.Namespace,
    *,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """The frozen config of a run, fitted to the machine, whose OUTPUT_DIR gets a log.txt.

    Args:
        args: of :func:`argument_parser`.
        add_configs: see :func:`load_config`.

    Raises:
        ValueError: if the number of classes is left to the data, and there are none; see
            :func:`load_config` for others.
    """
    cfg = load_config(
        args.config_file, args.opts, allow_unsafe=args.allow_unsafe_yaml, add_configs=add_configs
    )
    check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)  # before there is an OUTPUT_DIR
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sgr")
    fit_to_machine(cfg)
    cfg.freeze()
    return cfg


def fit_to_machine(cfg: CfgNode) -> None:
    """Change a config to what this machine can run, and log the changes.

    Without a GPU, MODEL.DEVICE becomes "cpu". Where there is one process, or no GPU, synchronized
    batch norms ("SyncBN") become ordinary ones ("BN").
    """
    logger = logging.getLogger(__name__)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("There is no GPU: running in one process on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if comm.get_world_size() == 1 or cfg.MODEL.DEVICE == "cpu":
        model = cfg.MODEL
        for node in (
            model.RESNETS,
            model.FPN,
            model.SEM_SEG_HEAD,
            model.ROI_BOX_HEAD,
            model.ROI_MASK_HEAD,
        ):
            if node.NORM == "SyncBN":
                logger.info("One process: SyncBN becomes BN")
                node.NORM = "BN"


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in a process for each of ``--num-gpus``; in this one without a GPU."""
    if not torch.cuda.is_available():
        args.num_gpus = 0  # setup_config says so
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
