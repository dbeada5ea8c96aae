"""Loading checkpoints, also those of strangers."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from .backbone_file import differing_settings, is_backbone_file, place_backbone
from .report import report_differences

__all__ = ["SafeCheckpointer", "read_checkpoint"]


def read_checkpoint(path: str, *, allow_pickle: bool = False) -> dict[str, Any]:
    """What is in a checkpoint, on the CPU, with the tensors (or arrays) by name under "model".

    Args:
        path: see :class:`SafeCheckpointer` for what is read.
        allow_pickle: as there.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it needs ``allow_pickle``, cannot be read, or holds no tensors with names.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {path!r}")
    return SafeCheckpointer(nn.Module(), allow_pickle=allow_pickle)._load_file(path)


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which runs no code out of a file unless it is told to.

    ``.pth`` files are read with ``weights_only=True``. Files that only a full unpickling can read,
    Detectron2's model zoo (``.pkl``) among them, can run any code of their author's, and are
    refused without ``allow_pickle``.

    A file holds a dict of ``model`` (name -> tensor) and what else belongs to a run, such a dict of
    ``state_dict``, of which the rest is left alone, or the tensors themselves.

    Files of others load where a module of the model, its backbone for one, has a method
    ``adapt_checkpoint(prefix, state)``. It gets the prefix of its names in the model and the
    tensors of the file, and returns name in the model -> tensor for those that it renames or
    changes, nothing if the file is not for it. If it gives a tensor a new name, the file is one of
    its own kind, a classifier for one, and nothing else of the file is loaded. For example, see
    :class:`~sgr.modeling.backbone.SwinTransformer`.

    It logs one table of what does not fit.

    Args:
        model, save_dir, checkpointables: as in Detectron2.
        allow_pickle: unpickle files from a source that the user trusts.
    """

    def __init__(self, model, save_dir="", *, allow_pickle: bool = False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.allow_pickle = allow_pickle

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, as Detectron2 does.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file needs ``allow_pickle``, cannot be read, holds no tensors with
                names, or none that becomes a parameter of the model; if it holds another backbone
                than the model's, and nothing else.
        """
        if path and not os.path.isfile(path):
            # Perhaps a name such as "detectron2://...", of which a copy is fetched. Newer versions
            # of Detectron2 take options behind a question mark.
            if not os.path.isfile(self.path_manager.get_local_path(path.partition("?")[0])):
                raise FileNotFoundError(
                    f"there is no checkpoint {path!r} (MODEL.WEIGHTS, or the last of --resume)"
                )
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        of_others = filename.endswith((".pkl", ".pyth"))
        if of_others and not self.allow_pickle:
            raise ValueError(_pickle_message(filename))
        try:
            if of_others:
                loaded = super()._load_file(filename)
            else:
                loaded = torch.load(
                    filename, map_location="cpu", weights_only=not self.allow_pickle
                )
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a text, say, read as a pickle may raise anything
            if isinstance(error, pickle.UnpicklingError) and not self.allow_pickle:
                raise ValueError(_pickle_message(filename)) from error
            raise ValueError(
                f"{filename!r} is damaged or no checkpoint: {type(error).__name__}: {error}"
            ) from error
        return _with_model(loaded, filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        in_file = list(checkpoint["model"])
        self._convert_ndarray_to_tensor(checkpoint["model"])
        if is_backbone_file(checkpoint):
            checkpoint.update(model=self._place_backbone(checkpoint), matching_heuristics=False)
        adapted = adapt_checkpoint(self.model, checkpoint["model"])
        if not adapted.keys() <= checkpoint["model"].keys():
            # All names are the model's now. To guess by their endings could only do harm.
            checkpoint.update(model=adapted, matching_heuristics=False)
        else:
            checkpoint["model"].update(adapted)
        shapes = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        incompatible = super()._load_model(checkpoint)
        self._check_any_loaded(in_file, incompatible)
        table = report_differences(
            self.model,
            shapes,
            missing=incompatible.missing_keys,
            unexpected=incompatible.unexpected_keys,
            mismatched=incompatible.incorrect_shapes,
        )
        if table is not None:
            logging.getLogger(__name__).warning(
                "The checkpoint does not fit the model in all; what is missing or mismatched stays "
                "as it was:\n%s",
                table,
            )
        return incompatible

    def _place_backbone(self, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a backbone file under their names in the model."""
        placed = place_backbone(self.model, checkpoint["model"])
        logging.getLogger(__name__).info(
            "The file holds a backbone only, of %s: %d tensors, of which %d have a place in the "
            "model; its other parts start as they are",
            checkpoint.get("source"),
            len(checkpoint["model"]),
            len(placed.keys() & self.model.state_dict().keys()),
        )
        for key, (old, new) in differing_settings(
            self.model, checkpoint.get("settings", {})
        ).items():
            logging.getLogger(__name__).warning(
                "The backbone was trained with %s %s, the model has %s: set it to that of the "
                "training, on which the weights depend",
                *(key, old, new),
            )
        return placed

    def _check_any_loaded(self, in_file: list[str], incompatible) -> None:
        """Raise a ValueError if no parameter (of a model without any, no buffer) was taken."""
        # Buffers do not count: statistics of frozen norms are never missing, and constants of Swin
        # fit any other Swin.
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        in_model = list(parameters or self.model.state_dict())
        mismatched = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        if not in_model or set(in_model) - {*incompatible.missing_keys, *mismatched}:
            return
        shapes = ""
        for name in [name for name in in_model if name in mismatched][:1]:
            old, new = map(tuple, mismatched[name])
            shapes = f"; {name} is {old} in the file, {new} in the model"
        raise ValueError(
            "the checkpoint holds no parameter of this model: it has "
            f"{', '.join(in_file[:3])} ..., the model {', '.join(in_model[:3])} ...{shapes}; is it "
            "a checkpoint of another model?"
        )

    def _log_incompatible_keys(self, incompatible) -> None:
        """Nothing: the table has told it."""


def adapt_checkpoint(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Ask all modules with an ``adapt_checkpoint`` how a file fits; see :class:`SafeCheckpointer`.

    Returns:
        Name in the model -> tensor, of what they rename or change.
    """
    adapted = {}
    for name, module in model.named_modules():
        if hasattr(module, "adapt_checkpoint"):
            adapted.update(module.adapt_checkpoint(f"{name}." if name else "", state))
    return adapted


def _with_model(loaded: Any, filename: str) -> dict[str, Any]:
    """What a file holds as a dict with the model's tensors under "model"."""
    if isinstance(loaded, dict):
        if _are_named_arrays(loaded.get("model")):
            return loaded
        # Of others' trainers; the rest of their files belongs to their optimizers.
        for model in (loaded.get("state_dict"), loaded):
            if _are_named_arrays(model):
                return {"model": model}
        found = f"a dict of {', '.join(map(repr, list(loaded)[:5])) or 'nothing'}"
    else:
        found = f"a {type(loaded).__name__}"
    raise ValueError(
        f"{filename!r} holds {found}; a checkpoint is {{'model': {{name: tensor}}}}, "
        "{'state_dict': {name: tensor}} or {name: tensor}"
    )


def _are_named_arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(each, (torch.Tensor, np.ndarray))
        for name, each in value.items()
    )


def _pickle_message(filename: str) -> str:
    return (
        f"{filename!r} is damaged, or can only be read by unpickling, which runs whatever code its "
        "author put into it; if you trust where it comes from, add --allow-pickle"
    )
