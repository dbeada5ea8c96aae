"""The models that an explorer shows."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from torch import nn

from ..checkpoints.model_folder import folder_with
from ..checkpoints.sources import HUB
from ..inference import puts_out_regions
from ..inference.metadata import model_metadata
from ..load import add_model_arguments, load_model


@dataclass(frozen=True)
class ExplorerModel:
    """A model in evaluation mode, with the config that it was built from, under a name.

    The explorer sees whole images at one scale, whatever the config says of testing, and the tokens
    of every model that has some. So ``model`` puts out its tokens from now on, and ``cfg`` asks for
    them.
    """

    name: str
    model: nn.Module
    cfg: CfgNode

    def __post_init__(self) -> None:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TEST.AUG.ENABLED = cfg.TEST.SLIDING_WINDOW.ENABLED = False
        cfg.TEST.TOKENS.ENABLED = puts_out_regions(cfg, self.model)
        cfg.freeze()
        object.__setattr__(self, "cfg", cfg)
        if hasattr(self.model, "concepts_in_output"):
            self.model.concepts_in_output = cfg.TEST.TOKENS.ENABLED

    @property
    def metadata(self) -> Metadata:
        """Names and colours of the model's classes: of its folder, or of its first test set."""
        return model_metadata(self.model, self.cfg)


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model and others to compare; call it after all other arguments.

    These are ``--name``, ``--models``, and those of :func:`~sgr.load.add_model_arguments`.
    """
    parser.add_argument("--name", default="", help="of the model; default: that of the config")
    parser.add_argument(
        "--models",
        nargs="+",
        type=_named_model,
        default=[],
        metavar="NAME=CONFIG[+CONFIG...][@WEIGHTS]",
        help="more models to compare; several configs are merged; a model folder needs no weights",
    )
    add_model_arguments(parser)


def _named_model(text: str) -> tuple[str, list[str], str | None]:
    name, equals, rest = text.partition("=")
    # A path may have an "@", and so has the revision of a model on the hub: the configs end where
    # all of them are there, or else at the last one.
    ends = [len(rest), *(end for end in reversed(range(len(rest))) if rest[end] == "@")]
    known = [end for end in ends if all(map(_is_there, rest[:end].split("+")))]
    end = (known or ends[1:] or ends)[0]
    configs, at, weights = rest[:end], rest[end : end + 1], rest[end + 1 :]
    if not (name and equals and configs) or (at and not weights):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CONFIG[+CONFIG...][@WEIGHTS]")
    return name, configs.split("+"), weights or None


def _is_there(config: str) -> bool:
    if config.startswith(HUB):
        return config.count("@") <= 1  # before a revision
    return os.path.exists(os.path.expanduser(config))


def model_name(config: str) -> str:
    """A name for a model: that of its folder, or of its config file."""
    path = Path(config)
    folder = path if config and path.is_dir() else folder_with(path)
    return folder.absolute().name if folder else path.stem


def load_models(args: argparse.Namespace) -> list[ExplorerModel]:
    """Load the models that the arguments of :func:`add_models_arguments` name.

    Raises:
        ValueError: two have one name; see also :func:`sgr.load_model`.
    """
    name = args.name or model_name(args.config_file)
    names = [name, *(other for other, *_ in args.models)]
    if len(set(names)) < len(names):
        raise ValueError(f"the models need different names, not {', '.join(names)}; see --name")
    first = (name, [args.config_file, *args.mixins], args.weights)
    return [
        ExplorerModel(
            name,
            *load_model(
                *named,
                *args.opts,
                allow_pickle=args.allow_pickle,
                allow_unsafe_yaml=args.allow_unsafe_yaml,
            ),
        )
        for name, *named in (first, *args.models)
    ]
