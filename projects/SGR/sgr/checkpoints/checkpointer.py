"""Loading checkpoints, also files of strangers."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..data.files import draft_of
from . import sources  # noqa: F401 (registers "package://" and "hf-hub:")
from .backbone_file import differing_settings, is_backbone_file, place_backbone
from .model_folder import backbone_view, folder_content, folder_with, weights_of
from .report import report_differences
from .torchvision_resnet import as_backbone_file

BEST = "model_best"  # the name that Detectron2 gives


def read_checkpoint(path: str, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Args:
        path: a file that :class:`SafeCheckpointer` can read, or a model folder.
        allow_pickle: unpickle files from a source that the user trusts.

    Returns:
        The content of the file, with its tensors (or arrays) by name under "model".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it needs ``allow_pickle``, cannot be read, or holds no tensors with names.
    """
    if os.path.isdir(path):
        path = weights_of(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {path!r}")
    return SafeCheckpointer(nn.Module(), allow_pickle=allow_pickle)._load_file(path)


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but it runs no code of a file unless it is told to.

    It reads ``.pth`` files with ``weights_only=True``, and ``.safetensors`` files, which hold no
    code. Some files need a full unpickling, for example those of Detectron2's model zoo (``.pkl``).
    They can run any code of their author, so it refuses them without ``allow_pickle``.

    It also takes the names of Detectron2's path manager and of :mod:`sgr.checkpoints.sources`, and
    model folders (:mod:`sgr.checkpoints.model_folder`). Where a folder is of another kind of model,
    so that only its backbone has a place in this one, the backbone is loaded as from a backbone
    file.

    A file may have one of three forms: {"model": {name: tensor}} with other entries of a run;
    {"state_dict": {name: tensor}}, of which other entries are ignored; or {name: tensor}.

    A module of the model, for example its backbone, can adapt files of others by a method
    ``adapt_checkpoint(prefix, state)``. The method gets the prefix of its names in the model and
    the tensors of the file. It returns name in the model -> tensor, of those that it renames or
    changes. If the file is not for it, it returns nothing. If it gives a tensor a new name, the
    file is a model of its own, for example a classifier, and nothing else of it is loaded. See
    :class:`~sgr.modeling.backbone.SwinTransformer`. Detectron2's ResNet has no such method;
    :mod:`sgr.checkpoints.torchvision_resnet` adapts files for it.

    It logs one table of what does not fit.

    Args:
        model, save_dir, checkpointables: as in Detectron2.
        allow_pickle: unpickle files from a source that the user trusts.
    """

    def __init__(self, model, save_dir="", *, allow_pickle: bool = False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.allow_pickle = allow_pickle
        self._is_resuming = False
        self._read: tuple[str, dict[str, Any]] = "", {}  # a file and its content, not loaded yet

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint, as Detectron2 does, so that a crash leaves no half a file.

        Raises:
            OSError: if the file cannot be written; earlier checkpoints stay as they are.
        """
        self._save(name, self.checkpointables, kwargs, can_resume=True)

    def save_best(self, **kwargs: Any) -> None:
        """Save the model alone as ``model_best.pth``, from which ``--resume`` never goes on.

        Raises:
            OSError: if the file cannot be written; an earlier one stays as it is.
        """
        self._save(BEST, {}, kwargs, can_resume=False)

    def _save(
        self, name: str, parts: Mapping[str, Any], more: Mapping[str, Any], *, can_resume: bool
    ) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {key: part.state_dict() for key, part in parts.items()}
        data = {"model": self.model.state_dict(), **data, **more}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logging.getLogger(__name__).info("Saving checkpoint to %s", path)
        try:
            with draft_of(path, sync=True) as draft:
                torch.save(data, draft)
            if can_resume:
                self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:  # PyTorch raises a RuntimeError on a full disk
            raise OSError(
                f"the checkpoint {path} cannot be written ({error}); earlier ones are intact: free "
                "space, or set another OUTPUT_DIR, and go on with --resume"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` goes on from; "" for none of those there are."""
        with draft_of(os.path.join(self.save_dir, "last_checkpoint"), sync=True) as draft:
            draft.write_text(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint in ``save_dir`` to go on from, intact or not."""
        return bool(self._checkpoints())

    def _checkpoints(self) -> list[str]:
        """Paths of what --resume may go on from: the one that was written last, then older ones."""
        folder = Path(self.save_dir)
        paths = [path for path in folder.glob("model_*.pth") if path.stem != BEST]
        paths.sort(key=lambda path: -path.stat().st_mtime)
        tag = folder / "last_checkpoint"
        if tag.is_file():
            name = tag.read_text().strip()
            if not name:
                return []
            last = folder / name
            paths = [last, *(path for path in paths if path != last)]
        return [str(path) for path in paths]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest intact checkpoint of ``save_dir`` with ``resume``, or else ``path``.

        It logs a warning for each newer checkpoint that is damaged or has gone.

        Raises:
            ValueError: with ``resume``, if there are checkpoints and none is intact, or if a
                parameter of the model is missing or has another shape; see also :meth:`load`.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=False)
        problems: list[str] = []
        for candidate in self._checkpoints():
            try:
                self._read = candidate, self._load_file(candidate)
            except (OSError, ValueError) as error:
                problems.append(str(error))
                continue
            for problem in problems:
                logging.getLogger(__name__).warning("Going on from %s: %s", candidate, problem)
            self._is_resuming = True
            try:
                return self.load(candidate)
            finally:
                self._is_resuming = False
        raise ValueError(f"no checkpoint in {self.save_dir!r} is intact: {'; '.join(problems)}")

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file as Detectron2 does.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file needs ``allow_pickle``, cannot be read, holds no tensors with
                names, or no tensor that becomes a parameter of the model; or if it is a file of
                another backbone than the model's.
        """
        if path and os.path.isdir(path):
            path = weights_of(path)
        elif path and not os.path.isfile(path):
            # It may be a name such as "detectron2://...", for which Detectron2 fetches a copy.
            # Newer versions take options behind a question mark.
            try:
                file = self.path_manager.get_local_path(path.partition("?")[0])
            except FileNotFoundError:
                raise
            except OSError as error:  # of urllib and requests, too
                raise OSError(
                    f"the weights {path!r} (MODEL.WEIGHTS) cannot be fetched: {error}; check the "
                    "address, or download the file and name it"
                ) from error
            if not os.path.isfile(file):
                raise FileNotFoundError(
                    f"there is no checkpoint {path!r} (MODEL.WEIGHTS, or the last of --resume)"
                )
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        (read, content), self._read = self._read, ("", {})
        if read == filename:
            return content
        of_others = filename.endswith((".pkl", ".pyth"))
        if of_others and not self.allow_pickle:
            raise ValueError(_pickle_message(filename))
        try:
            if of_others:
                loaded = super()._load_file(filename)
            elif filename.endswith(".safetensors"):
                loaded = _load_safetensors(filename)
                folder = folder_with(filename)
                loaded = loaded if folder is None else folder_content(folder, loaded)
            else:
                loaded = torch.load(
                    filename, map_location="cpu", weights_only=not self.allow_pickle
                )
        except (ImportError, OSError, MemoryError):
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
        checkpoint.update(as_backbone_file(self.model, checkpoint["model"]) or {})
        checkpoint.update(backbone_view(self.model, checkpoint) or {})
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
        differ = incompatible.missing_keys or incompatible.incorrect_shapes
        if differ and self._is_resuming:
            raise ValueError(
                "the checkpoint to resume from is that of another model; go back to the config of "
                "its training, or start anew from its weights: without --resume, with "
                f"MODEL.WEIGHTS and another OUTPUT_DIR\n{table}"
            )
        if table is not None:
            logging.getLogger(__name__).warning(
                "The checkpoint does not fit the model in all. What is missing or mismatched stays "
                "as it was:\n%s",
                table,
            )
        return incompatible

    def _place_backbone(self, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Name the tensors of a backbone file as the model does, and log what it is."""
        placed = place_backbone(self.model, checkpoint["model"])
        logging.getLogger(__name__).info(
            "The file holds a backbone only, of %s: %d tensors, of which %d have a place in the "
            "model; its other parts start as they are",
            checkpoint.get("source"),
            len(checkpoint["model"]),
            len(placed.keys() & self.model.state_dict().keys()),
        )
        differing = differing_settings(self.model, checkpoint.get("settings", {}))
        for key, (old, new) in differing.items():
            logging.getLogger(__name__).warning(
                "The backbone was trained with %s %s, the model has %s. The weights depend on it: "
                "set it as in the training",
                *(key, old, new),
            )
        return placed

    def _check_any_loaded(self, in_file: list[str], incompatible) -> None:
        """Raise a ValueError if no parameter was loaded; if the model has none, no buffer."""
        # Buffers do not count: statistics of frozen norms are never missing, and constants fit any
        # other model of their kind.
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
        """Log nothing, because the table has it already."""


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


def _load_safetensors(filename: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"{filename!r} needs safetensors, which is not installed: pip install safetensors"
        ) from error
    return load_file(filename)


def _with_model(loaded: Any, filename: str) -> dict[str, Any]:
    """Bring the content of a file into a dict with the model's tensors under "model"."""
    if isinstance(loaded, dict):
        if _are_named_arrays(loaded.get("model")):
            return loaded
        # Other trainers. The rest of their files belongs to their optimizers.
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
        isinstance(name, str) and isinstance(array, (torch.Tensor, np.ndarray))
        for name, array in value.items()
    )


def _pickle_message(filename: str) -> str:
    return (
        f"{filename!r} is damaged, or can only be read by unpickling, which runs whatever code its "
        "author put into it; if you trust where it comes from, add --allow-pickle"
    )
