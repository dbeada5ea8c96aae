"""A trained model in one line of Python, and the command line of the tools that load one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .checkpoints.trained import TrainedCheckpointer
from .engine.config_check import check_config
from .engine.setup import (
    add_mixins_flag,
    add_safety_flags,
    fit_to_machine,
    load_config,
    merge_options,
)
from .engine.speed import arrange_memory
from .modeling.layers.checks import check_num_classes


def load_model(
    config: str | PathLike | Sequence[str | PathLike] | CfgNode,
    weights: str | PathLike | None = None,
    *options: Any,
    allow_pickle: bool = False,
    allow_unsafe_yaml: bool = False,
) -> tuple[nn.Module, CfgNode]:
    """Build the model of a config and load its trained weights.

        model, cfg = sgr.load_model("configs/shapes/fcn_R50_sgr.yaml", "model_final.pth")
        outputs = model([{"image": image}])  # (3, H, W) in the order of cfg.INPUT.FORMAT

    Args:
        config: a YAML file, or several of which the later ones override the earlier ones; or a
            config, which stays unchanged; or a model folder (docs/predict.md), or
            ``hf-hub:OWNER/NAME``, which is fetched if ``allow_unsafe_yaml`` is True.
        weights: a checkpoint or a model folder; None takes the config's MODEL.WEIGHTS, which are
            those of the folder, and "" leaves the parameters at their random values.
        options: key, value, key, value...: changes of the config.
        allow_pickle: read checkpoints that need unpickling, which can run any code.
        allow_unsafe_yaml: read configs with ``!!python`` tags, which can run any code, and fetch
            models from the hub.

    Returns:
        The model, in evaluation mode, on MODEL.DEVICE (on the CPU where there is no GPU), and the
        frozen config that it was built from.

    Raises:
        ValueError: if no weights are named, they are those of a backbone only, or a parameter of
            the model is missing in them, has another shape, or is not finite; or if a config lacks
            the keys of :func:`sgr.add_sgr_config`.
        FileNotFoundError: if there is no such config or checkpoint.

    See :func:`~sgr.engine.load_config` and :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer`
    for other errors.
    """
    return load_with_checkpoint(
        config,
        weights,
        *options,
        allow_pickle=allow_pickle,
        allow_unsafe_yaml=allow_unsafe_yaml,
    )[:2]


def load_with_checkpoint(
    config: str | PathLike | Sequence[str | PathLike] | CfgNode,
    weights: str | PathLike | None,
    *options: Any,
    allow_pickle: bool,
    allow_unsafe_yaml: bool,
) -> tuple[nn.Module, CfgNode, dict[str, Any]]:
    """The same as :func:`load_model`, and what the checkpoint holds beside the parameters."""
    if isinstance(config, CfgNode):
        if "SGR" not in config.MODEL:
            raise ValueError(
                "the config has no keys of SGR: call sgr.add_sgr_config(cfg) before its files and "
                "options are merged"
            )
        cfg = config.clone()
        cfg.defrost()
        merge_options(cfg, options)
        check_config(cfg)
    else:
        cfg = load_config(config, list(options), allow_unsafe=allow_unsafe_yaml)
    if weights is not None:
        cfg.MODEL.WEIGHTS = fspath(weights)
    elif not cfg.MODEL.WEIGHTS:
        raise ValueError("there are no weights: name a trained checkpoint with MODEL.WEIGHTS FILE")
    check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    fit_to_machine(cfg)
    cfg.freeze()
    # Some of Detectron2's models change their config.
    model = arrange_memory(build_model(cfg.clone()).eval(), cfg)
    rest = {}
    if cfg.MODEL.WEIGHTS:
        rest = TrainedCheckpointer(model, allow_pickle=allow_pickle).load(cfg.MODEL.WEIGHTS)
    return model, cfg, rest


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained model; call it after all other arguments.

    These are ``--config-file``, ``--with``, ``--weights``, ``--allow-pickle``,
    ``--allow-unsafe-yaml``, and KEY VALUE pairs (``opts``) at the end of the command line.
    """
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a config, or a model folder"
    )
    add_mixins_flag(parser)
    parser.add_argument("--weights", metavar="FILE", help="default: the config's MODEL.WEIGHTS")
    add_safety_flags(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config"
    )
