"""Loading checkpoints, also those of strangers."""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .checkpoint_report import report_differences
from .modeling.backbone.swin_weights import convert_imagenet_weights, resize_position_tables

__all__ = ["SafeCheckpointer"]


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which runs no code out of a file unless it is told to.

    ``.pth`` files are read with ``weights_only=True``. Files that only a full unpickling can read,
    Detectron2's model zoo (``.pkl``) among them, can run any code of their author's, and are
    refused without ``allow_pickle``.

    Besides what Detectron2 reads, ImageNet weights of Swin load into a
    :class:`~sgr.modeling.backbone.SwinTransformer` anywhere in the model, from the original release
    and from torchvision; its relative positions are resized where windows differ in size. What
    does not fit is logged as one table.

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
            ValueError: if the file needs ``allow_pickle``, cannot be read, or holds no parameter
                of the model.
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
        if self.allow_pickle and filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        if filename.endswith((".pkl", ".pyth")):
            raise ValueError(_pickle_message(filename))
        try:
            loaded = torch.load(
                filename, map_location="cpu", weights_only=not self.allow_pickle
            )
        except pickle.UnpicklingError as error:
            if self.allow_pickle:
                raise ValueError(f"{filename!r} is no checkpoint of PyTorch: {error}") from error
            raise ValueError(_pickle_message(filename)) from error
        except (EOFError, RuntimeError) as error:
            raise ValueError(f"{filename!r} is damaged or no checkpoint: {error}") from error
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: dict[str, Any]):
        names = list(checkpoint["model"])
        self._convert_ndarray_to_tensor(checkpoint["model"])
        converted = convert_imagenet_weights(self.model, checkpoint["model"])
        if converted is not None:
            # Its names are the model's now; to guess by their endings could only do harm.
            checkpoint.update(model=converted, matching_heuristics=False)
        resize_position_tables(self.model, checkpoint["model"])
        shapes = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        incompatible = super()._load_model(checkpoint)
        if len(incompatible.missing_keys) == len(self.model.state_dict()):
            raise ValueError(
                "the checkpoint holds no parameter of this model: it has "
                f"{', '.join(names[:3])} ..., the model {', '.join(incompatible.missing_keys[:3])}"
                " ...; is it a checkpoint of another model?"
            )
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

    def _log_incompatible_keys(self, incompatible) -> None:
        """Nothing: the table has told it."""


def _pickle_message(filename: str) -> str:
    return (
        f"{filename!r} is damaged, or can only be read by unpickling, which runs whatever code its "
        "author put into it; if you trust where it comes from, add --allow-pickle"
    )
