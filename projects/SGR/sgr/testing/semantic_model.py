"""What the wrappers of models for semantic segmentation ask of a model, and of a config."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..evaluation.build import why_not_semantic
from ..modeling.layers.strips import Strips

__all__ = [
    "are_logits",
    "check_semantic_output",
    "check_test_datasets",
    "resizes_masks",
    "scores_only",
    "semantic_config",
    "to_output",
    "unwrapped",
]

# By name, as subclasses have it too: the last one is the public MaskFormer's and Mask2Former's.
_ARE_LOGITS = {"SemanticSegmentor": True, "MaskFormerSegmentor": False, "MaskFormer": False}

# Attributes of our models and of the public ones; where a model has them, they are switched.
_SCORES_ONLY = {
    "semantic_output": "scores",
    "panoptic_on": False,
    "instance_on": False,
    "concepts_in_output": False,
}
_RESIZES_MASKS = ("postprocess_before_inference", "sem_seg_postprocess_before_inference")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where it is the one of a process among several."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def are_logits(model: nn.Module) -> bool:
    """Whether the model's ``sem_seg`` are logits, as of per-pixel models, or scores.

    Scores are what mask classifiers put out: sums of probabilities, not normalised.

    Raises:
        ValueError: if the model is not known to put out ``sem_seg``, or that is switched off.
    """
    names = [each.__name__ for each in type(model).__mro__]
    known = [_ARE_LOGITS[name] for name in names if name in _ARE_LOGITS]
    if not known:
        raise ValueError(
            "multi-scale testing and sliding windows are for semantic segmentation, by a "
            f"SemanticSegmentor, MaskFormerSegmentor or subclass, and {names[0]} is none; set "
            "TEST.AUG.ENABLED and TEST.SLIDING_WINDOW.ENABLED to False"
        )
    if not getattr(model, "semantic_on", True):
        raise ValueError(
            f"multi-scale testing and sliding windows need the semantic results of {names[0]}: set "
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON to True, or TEST.AUG.ENABLED and "
            "TEST.SLIDING_WINDOW.ENABLED to False"
        )
    return known[0]


def resizes_masks(model: nn.Module) -> bool:
    """Whether a mask classifier resizes its masks to the size asked for, not their sum."""
    return any(getattr(model, name, False) for name in _RESIZES_MASKS)


def check_semantic_output(semantic_output: str) -> None:
    """Raise a ValueError unless it is "scores" or "labels"."""
    if semantic_output not in ("scores", "labels"):
        raise ValueError(
            "semantic_output (MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT) must be 'scores' or "
            f"'labels', got {semantic_output!r}"
        )


@contextmanager
def scores_only(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, the model puts out ``sem_seg``, as scores, and nothing else.

    Raises:
        RuntimeError: if the model is in training mode.
    """
    if model.training:
        raise RuntimeError(f"{type(model).__name__} is in training mode: call eval() first")
    before = {name: getattr(model, name) for name in _SCORES_ONLY if hasattr(model, name)}
    try:
        for name in before:
            setattr(model, name, _SCORES_ONLY[name])
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


def to_output(scores: Tensor, size: tuple[int, int], semantic_output: str) -> Tensor:
    """(C, h, w) scores, resized bilinearly to ``size`` (H, W), or the best class of every pixel.

    Returns:
        (C, H, W) scores, the given ones where they have the size, or (H, W) int32 labels, for
        which no full-size scores are made.
    """
    if semantic_output == "scores":
        if tuple(scores.shape[-2:]) == size:
            return scores
        return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    labels = torch.empty(size, dtype=torch.int32, device=scores.device)
    for rows, strip in Strips.of(scores).resize(*size):
        labels[rows] = strip.max(0).indices
    return labels


def check_test_datasets(cfg: CfgNode, how: str) -> None:
    """Raise, before any work, the error of :func:`semantic_config`, where metadata tell so much.

    Nothing is loaded.
    """
    _datasets_left_out(cfg, how, load=False)


def semantic_config(cfg: CfgNode, how: str, *, all_datasets: bool = False) -> CfgNode:
    """A copy for an evaluation of ``sem_seg`` alone; what is not measured in it is logged.

    Tokens are not: their regions would be those of one scale or window among several. Nor are
    panoptic and instance results, and datasets that have nothing else: no label maps or segments,
    or none of the model's classes. To find these, panoptic datasets are loaded.

    Args:
        how: what is done, for the log.
        all_datasets: leave DATASETS.TEST as it is.

    Raises:
        ValueError: if no dataset is left of those in DATASETS.TEST.
    """
    logger = logging.getLogger(__name__)
    result = cfg.clone()
    result.defrost()
    switches = result.MODEL.MASK_FORMER.TEST
    left_out = []
    if result.TEST.TOKENS.ENABLED:
        left_out.append("token metrics (regions belong to one scale or window)")
    if switches.PANOPTIC_ON:
        left_out.append("panoptic quality")
    if switches.INSTANCE_ON:
        left_out.append("AP")
    result.TEST.TOKENS.ENABLED = switches.PANOPTIC_ON = switches.INSTANCE_ON = False
    if not all_datasets:
        without = _datasets_left_out(cfg, how, load=True)
        names = result.DATASETS.TEST
        result.DATASETS.TEST = tuple(name for name in names if name not in without)
        left_out += [f"anything on {name}, since {why}" for name, why in without.items()]
    if left_out:
        logger.info(f"{how}: not measured are {', '.join(left_out)}")
    result.freeze()
    return result


def _datasets_left_out(cfg: CfgNode, how: str, *, load: bool) -> dict[str, str]:
    """Those of DATASETS.TEST that cannot serve to measure ``sem_seg``, and why; not all."""
    reasons = {name: why_not_semantic(cfg, name, load=load) for name in cfg.DATASETS.TEST}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    if left_out and len(left_out) == len(reasons):
        whys = " and ".join(f"{name}, since {why}" for name, why in left_out.items())
        raise ValueError(
            f"{how}: semantic segmentations cannot be measured on {whys}; set DATASETS.TEST to a "
            "dataset with label maps or segments of the model's classes"
        )
    return left_out
