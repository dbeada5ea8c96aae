"""The backbone of a trained model as a file of its own, from which other models start (Sec. 5.2).

It holds the tensors under their names inside the backbone (``res2.0...``, ``layers.0...``,
``reasoning.<feature>...``). :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` puts them where
:func:`place_backbone` says. Detectron2's own checkpointer matches the names by their endings. It
refuses one kind of file that ours loads: a Swin without a reasoning module, for a Swin with one, if
a norm of the module has the channels of one of Swin's outputs.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ..data.files import draft_of

# The entry that marks a backbone file, and the version of its content.
FORMAT_KEY, FORMAT = "sgr_backbone_format", 1
# What wrappers put before all names: DistributedDataParallel, torch.compile, Lightning.
WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model)\.)*")
# Where models have a backbone: detectors with and without a pyramid, a pyramid, the backbone alone.
# C4 detectors have its last stage in their RoI heads.
PLACES = ("backbone.bottom_up.", "backbone.", "bottom_up.", "", "roi_heads.")
# The preparation of the images. The weights depend on it, and no shape shows it. Detectron2's
# models keep it in these attributes.
SETTINGS = {
    "INPUT.FORMAT": "input_format",
    "MODEL.PIXEL_MEAN": "pixel_mean",
    "MODEL.PIXEL_STD": "pixel_std",
}


def extract_backbone(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the backbone and its reasoning modules out of a model of Detectron2's naming.

    It lies under ``backbone.``, or under ``backbone.bottom_up.`` if that is a feature pyramid.
    Counters of batches in batch norms stay behind: frozen norms have none, and others need none.
    Names may begin with the prefixes of ``DistributedDataParallel`` (``module.``),
    ``torch.compile`` (``_orig_mod.``) and Lightning (``model.``).

    Args:
        checkpoint: "model" (name -> tensor or array), as
            :func:`~sgr.checkpoints.checkpointer.read_checkpoint` gives it.

    Returns:
        Name within the backbone -> tensor with memory of its own.

    Raises:
        ValueError: if there is no backbone in it, or nothing but a backbone.
    """
    if is_backbone_file(checkpoint):
        raise ValueError(
            f"a backbone file already, made of {checkpoint.get('source')}; MODEL.WEIGHTS takes it "
            "as it is"
        )
    state = checkpoint["model"]
    wrappers = WRAPPERS.match(os.path.commonprefix(list(state)))
    root = f"{wrappers.group() if wrappers else ''}backbone."
    below = f"{root}bottom_up."
    main = below if any(name.startswith(below) for name in state) else root
    tensors = {}
    for name, value in state.items():
        # A pyramid may have reasoning modules on outputs of its own.
        prefix = root if name.startswith(f"{root}reasoning.") else main
        if name.startswith(prefix) and not name.endswith(".num_batches_tracked"):
            # A copy: of a view, the file would hold all of the memory behind it.
            tensors[name.removeprefix(prefix)] = torch.as_tensor(value).detach().cpu().clone()
    if all(map(_is_reasoning, tensors)):
        found = [name for name in state if "backbone." in name] or list(state)
        raise ValueError(
            "there is no backbone under 'backbone.'; the checkpoint has "
            f"{', '.join(found[:3]) or 'no tensors'} ...: is it one of train_net.py? A classifier "
            "of ImageNet goes into MODEL.WEIGHTS as it is"
        )
    return tensors


def is_backbone_file(checkpoint: Mapping[str, Any]) -> bool:
    """Whether :func:`save_backbone` has written a checkpoint.

    Raises:
        ValueError: if another release has, in a format that this one does not know.
    """
    version = checkpoint.get(FORMAT_KEY, FORMAT)
    if version != FORMAT:
        raise ValueError(
            f"a backbone file of format {version!r}; this release knows only format {FORMAT}: use "
            "the release that wrote it, or a newer one"
        )
    return FORMAT_KEY in checkpoint


def backbone_content(
    tensors: Mapping[str, Tensor], *, source: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a backbone file; for the arguments, see :func:`save_backbone`."""
    return {
        # A plain dict: state dicts remember versions of their modules, and for these, older
        # releases of Detectron2 would change the variances of frozen batch norms by epsilon.
        "model": dict(tensors),
        FORMAT_KEY: FORMAT,
        "matching_heuristics": True,
        "source": source,
        "settings": dict(settings or {}),
    }


def source_of(name: str | Path, checkpoint: Mapping[str, Any]) -> str:
    """Where weights come from, for people to read: a name, and the iterations where it has them."""
    iteration = checkpoint.get("iteration")  # counted from 0
    return f"{name}, {iteration + 1} iterations" if isinstance(iteration, int) else str(name)


def save_backbone(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a backbone file, as a whole or not at all.

    Args:
        path: the file. It should end in ".pth", because Detectron2 reads others in other ways.
        tensors: of :func:`extract_backbone`.
        source: where they come from, for people to read.
        settings: of :func:`read_settings`.

    Raises:
        OSError: if the file cannot be written.
    """
    content = backbone_content(tensors, source=source, settings=settings)
    try:
        with draft_of(path) as draft:
            torch.save(content, draft)
    except RuntimeError as error:  # PyTorch's, for files that cannot be opened and for full disks
        raise OSError(f"{str(path)!r} cannot be written: {error}") from error


def place_backbone(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a backbone file as ``model`` names them.

    The backbone may lie under ``backbone``, below a pyramid there, or at the top of the model; its
    last stage may lie in the RoI heads too. A tensor without a place in the model gets a name
    beside the others.

    Args:
        model: the model to load into.
        tensors: name within the backbone -> tensor.

    Raises:
        ValueError: if no tensor has a place, except for those of reasoning modules.
    """
    own = model.state_dict().keys()
    places = {name: [place for place in PLACES if place + name in own] for name in tensors}
    plain = [name for name in tensors if not _is_reasoning(name)]
    homes = Counter(place for name in plain for place in places[name])
    if not homes:
        # The names that tell the most: those below a pyramid, else any in the backbone.
        groups = ([name for name in own if name.startswith(place)] for place in PLACES)
        backbone = next(filter(None, groups), ["no tensors"])
        raise ValueError(
            f"the file holds another backbone than the model's: {', '.join(plain[:3])} ...; the "
            f"model has {', '.join(backbone[:3])} ..."
        )
    home = homes.most_common(1)[0][0]
    return {
        place + name: value for name, value in tensors.items() for place in places[name] or [home]
    }


def read_settings(config_file: str | Path) -> dict[str, Any]:
    """Read how a model prepares its images: INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD.

    Args:
        config_file: as Detectron2 leaves it in the folder of a run. No tag of it is executed.

    Returns:
        Key -> value of all three; nothing if the file is not there, is no config or lacks one.
    """
    try:
        config = yaml.safe_load(Path(config_file).read_text())
        sections = [(key, config[key.split(".")[0]]) for key in SETTINGS]
        return {key: section[key.split(".")[1]] for key, section in sections}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return {}


def differing_settings(model: nn.Module, settings: Mapping[str, Any]) -> dict[str, tuple]:
    """Compare the settings of a backbone file with a model.

    Returns:
        Key -> value in the file, value in the model, where both have one and these differ. Of
        Detectron2's models, only detectors know INPUT.FORMAT.
    """
    pairs = {
        key: (_rounded(settings.get(key)), _rounded(getattr(model, attribute, None)))
        for key, attribute in SETTINGS.items()
    }
    return {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    return [round(number, 3) for number in value] if isinstance(value, (list, tuple)) else value


def _is_reasoning(name: str) -> bool:
    return name.startswith("reasoning.")
