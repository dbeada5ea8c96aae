"""The backbone of a trained model as a file of its own, from which other models start (Sec. 5.2).

Such a file holds the backbone's tensors under the names that they have inside it, ``res2.0...`` or
``layers.0...``, and those of its reasoning modules as ``reasoning.<feature>...``. They load

* by :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer`, which puts them where
  :func:`place_backbone` says,
* by Detectron2's own checkpointer, which matches names by their endings, as for the ImageNet files
  of its model zoo. In one case it refuses a file that ours loads: a Swin without a reasoning module
  into one with, where a norm of the latter has the channels of one of Swin's outputs.

What a detector has beside the backbone, its pyramid and heads, is not in the file and starts anew.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..modeling.backbone.swin_weights import resize_position_tables
from .report import report_differences

__all__ = [
    "DILATIONS",
    "ExtractedBackbone",
    "check_output",
    "compare_with_model",
    "differing_settings",
    "extract_backbone",
    "is_backbone_file",
    "part_of",
    "place_backbone",
    "read_settings",
    "reasoning_modules",
    "save_backbone",
    "settings_of",
]

# The entry that marks a backbone file, and the version of what is in such files.
FORMAT_KEY, FORMAT = "sgr_backbone_format", 1

# What wrappers put before all names: DistributedDataParallel, torch.compile, Lightning.
WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model)\.)*")

# Where models have a backbone: detectors with and without a pyramid, a pyramid, the backbone alone.
PLACES = ("backbone.bottom_up.", "backbone.", "bottom_up.", "")
# The last stage is part of the RoI heads in C4 detectors.
ROI_PLACE, ROI_STAGE = "roi_heads.", "res5."

# A detector may well want others than the segmentation model that its backbone comes from.
DILATIONS = (
    "MODEL.RESNETS.RES4_DILATION",
    "MODEL.RESNETS.RES5_DILATION",
    "MODEL.RESNETS.RES5_MULTI_GRID",
)
# What decides what weights mean, and does not show in their shapes; for tensors of these names.
SETTINGS = {
    r"": ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
    r"res\d+\.": ("MODEL.RESNETS.STRIDE_IN_1X1",),
    r"res4\.": DILATIONS[:1],
    r"res5\.": DILATIONS[1:],
    r"layers\.\d+\.": ("MODEL.SWIN.QK_SCALE",),
    r"reasoning\.[^.]+\.mixer\.": (
        "MODEL.SGR.NUM_HEADS",
        "MODEL.SGR.TOKEN_POOLING",
        "MODEL.SGR.XY_EMBEDDING",
        "MODEL.SGR.CENTROID_EMBEDDING",
    ),
}


class ExtractedBackbone(NamedTuple):
    """A backbone, and what of the checkpoint is not part of it.

    Attributes:
        tensors: name within the backbone -> tensor, with memory of its own.
        left_out: part of the model -> names of its tensors in the checkpoint.
    """

    tensors: dict[str, Tensor]
    left_out: dict[str, list[str]]


def extract_backbone(checkpoint: Mapping[str, Any]) -> ExtractedBackbone:
    """The backbone in a checkpoint of any model of Detectron2's naming, segmentor or detector.

    That is what lies under ``backbone.``, or, where that is a feature pyramid, under
    ``backbone.bottom_up.``, with the reasoning modules of either. Left out are pyramids and heads,
    and with the head of the dilated FCN its reasoning module; in C4 detectors also the last stage,
    which is part of their RoI heads. Batch norms' counters of batches stay behind too: frozen norms
    have none, and the others need none. Models saved inside of ``DistributedDataParallel``
    (``module.``), ``torch.compile`` (``_orig_mod.``) or Lightning (``model.``) are read as well.

    Args:
        checkpoint: "model" (name -> tensor or array), as
            :func:`~sgr.checkpoints.checkpointer.read_checkpoint` gives it.

    Raises:
        ValueError: if there is no backbone in it, or nothing but a backbone.
    """
    if is_backbone_file(checkpoint):
        raise ValueError(
            f"a backbone file already, made of {checkpoint.get('source')}; MODEL.WEIGHTS takes it "
            "as it is"
        )
    state = checkpoint["model"]
    wrappers = WRAPPERS.match(os.path.commonprefix(list(state))).group()
    state = {name.removeprefix(wrappers): value for name, value in state.items()}
    has_pyramid = any(name.startswith("backbone.bottom_up.") for name in state)
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    for name, value in state.items():
        inner = _name_in_backbone(name, has_pyramid)
        if inner is not None and not inner.endswith(".num_batches_tracked"):
            # A copy: of a view, the file would hold all of the memory behind it.
            tensors[inner] = torch.as_tensor(value).detach().cpu().clone()
        else:
            left_out.setdefault(_group_left_out(name, inner), []).append(name)
    if not any(_is_plain(name) for name in tensors):
        raise ValueError(_no_backbone_message(list(state)))
    return ExtractedBackbone(tensors, left_out)


def is_backbone_file(checkpoint: Mapping[str, Any]) -> bool:
    """Whether :func:`save_backbone` has written it.

    Raises:
        ValueError: if that of another release has, in a format that this one does not know.
    """
    version = checkpoint.get(FORMAT_KEY, FORMAT)
    if version != FORMAT:
        raise ValueError(
            f"a backbone file of format {version!r}, of which this release knows only {FORMAT}: "
            "use the release that wrote it, or a newer one"
        )
    return FORMAT_KEY in checkpoint


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """See that :func:`save_backbone` can write to ``path``.

    Raises:
        ValueError: if it does not end in ".pth"; Detectron2 reads other files in other ways.
        FileNotFoundError: if its folder does not exist.
        FileExistsError: if it exists, without ``overwrite``.
    """
    path = Path(path)
    if path.suffix != ".pth":
        raise ValueError(f"the output must be a .pth file, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{str(path)!r} exists; add --force to overwrite a file")


def save_backbone(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a backbone file, at once or not at all.

    Args:
        path: of the file, ending in ".pth".
        tensors: of :class:`ExtractedBackbone`.
        source: where they come from, for people.
        settings: of :func:`read_settings`.
        overwrite: replace a file that exists.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see :func:`check_output`.
        OSError: if the file cannot be written.
    """
    check_output(path, overwrite=overwrite)
    content = {
        # A plain dict: with the versions that state dicts remember of their modules, older
        # releases of Detectron2 would move the variances of batch norms on their way into frozen
        # ones by epsilon.
        "model": dict(tensors),
        FORMAT_KEY: FORMAT,
        "matching_heuristics": True,
        "source": source,
        "settings": dict(settings or {}),
    }
    draft = Path(f"{path}.draft")
    try:
        torch.save(content, draft)
        os.replace(draft, path)
    except RuntimeError as error:  # PyTorch's for files that cannot be opened, or a full disk
        raise OSError(f"{str(path)!r} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def place_backbone(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a backbone file as ``model`` names them.

    The backbone is looked for under ``backbone``, below a pyramid there, and at the top of the
    model; its last stage in the RoI heads too. What has no place in the model gets the name that it
    would have beside the others.

    Args:
        model: what is to be loaded.
        tensors: name within the backbone -> tensor.

    Raises:
        ValueError: if none of the tensors, but for reasoning modules', has a place.
    """
    own = model.state_dict().keys()
    places = {
        name: [
            place
            for place in (*PLACES, *([ROI_PLACE] if name.startswith(ROI_STAGE) else []))
            if place + name in own
        ]
        for name in tensors
    }
    homes = Counter(place for name in tensors if _is_plain(name) for place in places[name])
    if not homes:
        plain = [name for name in tensors if _is_plain(name)]
        # The names that tell the most: those below a pyramid, else any in the backbone.
        groups = ([each for each in own if each.startswith(place)] for place in PLACES)
        backbone = next(filter(None, groups), ["no tensors"])
        raise ValueError(
            f"the file holds another backbone than the model's: {', '.join(plain[:3])} ...; the "
            f"model has {', '.join(backbone[:3])} ..."
        )
    home = homes.most_common(1)[0][0]
    return {
        place + name: value for name, value in tensors.items() for place in places[name] or [home]
    }


def compare_with_model(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[list[str], str | None]:
    """What loading a backbone file into ``model`` would do; nothing is loaded.

    Returns:
        The names in ``model`` of the tensors that it would take, and the table of
        :func:`~sgr.checkpoints.report.report_differences` of all others: "missing" are those that
        would stay as they are.

    Raises:
        ValueError: if the model would take no tensor of its backbone.
    """
    placed = place_backbone(model, tensors)
    resize_position_tables(model, placed)
    in_file = {name: tuple(value.shape) for name, value in placed.items()}
    in_model = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    taken = [name for name, shape in in_model.items() if in_file.get(name) == shape]
    mismatched = [
        (name, shape, in_model[name])
        for name, shape in in_file.items()
        if name in in_model and shape != in_model[name]
    ]
    if not any(".reasoning." not in f".{name}" for name in taken):
        name, old, new = mismatched[0]
        raise ValueError(
            "no tensor of the backbone has the shape that it has in the model: "
            f"{name} is {old} in the file, {new} in the model"
        )
    table = report_differences(
        model,
        in_file,
        missing=in_model.keys() - in_file.keys(),
        unexpected=[name for name in in_file if name not in in_model],
        mismatched=mismatched,
    )
    return taken, table


def read_settings(config_file: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """Settings of a trained model that its weights do not show, but depend on.

    Args:
        config_file: as Detectron2 leaves it in the folder of a run. No tag of it is executed.
        names: of the backbone's tensors; settings of others are left out.

    Returns:
        Key -> value, of the keys that the file has; nothing if it is not there or no config.
    """
    try:
        config = yaml.safe_load(Path(config_file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    found = {key: _look_up(config, key) for key in settings_of(names)}
    return {key: value for key, value in found.items() if value is not None}


def settings_of(names: Iterable[str]) -> list[str]:
    """The keys of the settings that a backbone depends on, by the names of its tensors."""
    names = list(names)
    return [
        key
        for pattern, group in SETTINGS.items()
        if any(re.match(pattern, name) for name in names)
        for key in group
    ]


def differing_settings(settings: Mapping[str, Any], cfg: CfgNode) -> list[tuple[str, Any, Any]]:
    """(key, value of ``settings``, value in ``cfg``) where the two differ."""
    pairs = [(key, value, _look_up(cfg, key)) for key, value in settings.items()]
    return [(key, old, new) for key, old, new in pairs if _as_lists(old) != _as_lists(new)]


def reasoning_modules(names: Iterable[str]) -> dict[str, set[str]]:
    """The reasoning modules on a backbone's features.

    Args:
        names: of the tensors in a backbone file, or of those in a model.

    Returns:
        Feature -> names of the tensors within the module on it.
    """
    modules: dict[str, set[str]] = {}
    for name in names:
        found = re.match(r"(?:backbone\.)?(?:bottom_up\.)?reasoning\.([^.]+)\.(.+)", name)
        if found and not name.endswith(".num_batches_tracked"):
            modules.setdefault(found[1], set()).add(found[2])
    return modules


def part_of(name: str) -> str:
    """The part of a backbone that a tensor belongs to: "stem", "layers.0", "reasoning.res5".

    Args:
        name: of the tensor, within the backbone.
    """
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("layers", "reasoning") else 1])


def _name_in_backbone(name: str, has_pyramid: bool) -> str | None:
    """The name of a tensor within the backbone, None for those that are not in it."""
    for prefix in PLACES[:2] if has_pyramid else PLACES[1:2]:
        if not name.startswith(prefix):
            continue
        inner = name.removeprefix(prefix)
        # A pyramid may have reasoning modules on its own outputs.
        if prefix == PLACES[0] or not has_pyramid or not _is_plain(inner):
            return inner
    return None


def _is_plain(name: str) -> bool:
    """Whether a tensor belongs to the backbone proper, not to its reasoning modules."""
    return not name.startswith("reasoning.")


def _group_left_out(name: str, inner: str | None) -> str:
    if inner is not None:
        return "num_batches_tracked"
    if name.startswith("backbone."):
        return "feature pyramid"
    head, reasoning, _ = name.partition(".reasoning.")
    return head + reasoning.rstrip(".") if reasoning else name.partition(".")[0]


def _no_backbone_message(names: list[str]) -> str:
    beside = [name for name in names if name.startswith("backbone.")]
    if beside:
        return f"nothing of the backbone itself under 'backbone.', only {', '.join(beside[:3])} ..."
    found = f"no tensor under 'backbone.'; it has {', '.join(names[:3]) or 'no tensors'} ..."
    classifier = re.compile(r"(stem\.fc|fc|head|linear|classifier)\.(weight|bias)$")
    if any(classifier.match(name) for name in names):
        return f"{found}: a classifier, it seems; ImageNet's go into MODEL.WEIGHTS as they are"
    return f"{found}: is it a checkpoint of train_net.py?"


def _look_up(config: Any, key: str) -> Any:
    """The value under "A.B.C" in nested dicts, None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _as_lists(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
