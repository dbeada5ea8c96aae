"""The contract between a model and those who use its results.

A meta-architecture declares on its class what it puts out, as an attribute ``outputs`` of type
:class:`Outputs`. Evaluation, multi-scale testing, prediction and export ask :func:`outputs_of` and
nothing else, so a new meta-architecture touches its own file only. One table at the end of this
file speaks for the meta-architectures of Detectron2 and of the public MaskFormer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .reasoning import ConceptRegions

if TYPE_CHECKING:
    from detectron2.data.catalog import Metadata

# Kind of result -> its key in the output of an image.
RESULTS = {"semantic": "sem_seg", "panoptic": "panoptic_seg", "instance": "instances"}

# Kind of tokens -> the key of their regions in the output of an image. A model with tokens always
# puts out the first; a mask classifier with a reasoning module adds those of its queries.
REGIONS = {"tokens": "concept_regions", "queries": "query_regions"}

# (model, images (B, 3, H', W'), size (H, W)) -> (B, C, H, W).
BatchScores = Callable[[nn.Module, Tensor, tuple[int, int]], Tensor]


_ALONE = {
    "semantic_output": "scores",
    "panoptic_on": False,
    "instance_on": False,
    "concepts_in_output": False,
}


@dataclass(frozen=True)
class Outputs:
    """What a meta-architecture puts out for an image.

    Attributes:
        results: kinds of results, out of :data:`RESULTS`.
        switchable: whether ``cfg.MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON`` switch
            the results on and off, and the model has attributes ``semantic_on`` and so on.
        sem_seg: "logits" if a softmax turns ``sem_seg`` into probabilities; "scores" if ``sem_seg``
            is averaged as it is; "" if the model cannot put out ``sem_seg`` alone.
        joint_classes: whether things and stuff share one numbering of classes.
        resizes_masks: attribute of the model that says whether it resizes masks, and not their
            sum, to the size of the result; "" if there is none.
        alone: attribute -> the value with which the model puts out full scores in ``sem_seg`` and
            nothing else. A model need not have all of these attributes.
        batch_scores: the scores of ``sem_seg`` for a batch of normalised, padded images, without
            lists and dicts, for export; None if the model cannot be exported.
    """

    results: tuple[str, ...]
    switchable: bool = False
    sem_seg: str = ""
    joint_classes: bool = True
    resizes_masks: str = ""
    alone: Mapping[str, Any] = field(default_factory=lambda: dict(_ALONE))
    batch_scores: BatchScores | None = None

    def switched_on(self, cfg) -> tuple[str, ...]:
        """The kinds of results that a model built from ``cfg`` puts out."""
        if not self.switchable:
            return self.results
        switches = cfg.MODEL.MASK_FORMER.TEST
        return tuple(result for result in self.results if switches[f"{result.upper()}_ON"])

    def num_classes(self, model: nn.Module) -> int | None:
        """The number of classes if things and stuff share one numbering, else None."""
        head = getattr(model, "sem_seg_head", None)
        return getattr(head, "num_classes", None) if self.joint_classes else None


def outputs_of(model: nn.Module | type[nn.Module]) -> Outputs | None:
    """What a model, or a meta-architecture, declares to put out; None if it is unknown."""
    declared = getattr(model, "outputs", None)
    if isinstance(declared, Outputs):
        return declared
    cls = model if isinstance(model, type) else type(model)
    names = [base.__name__ for base in cls.__mro__]
    return next((_ADAPTERS[name] for name in names if name in _ADAPTERS), None)


def check_semantic_output(semantic_output: str) -> None:
    """Raise a ValueError unless it is "scores" or "labels"."""
    if semantic_output not in ("scores", "labels"):
        raise ValueError(
            "semantic_output (MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT) must be 'scores' or "
            f"'labels', got {semantic_output!r}"
        )


def predicted_labels(sem_seg: Tensor) -> Tensor:
    """The best class of each pixel, from either form of a model's ``sem_seg``.

    Args:
        sem_seg: (C, H, W) scores, or (H, W) integer labels.

    Returns:
        (H, W) integer labels, on the same device. Of equal scores the first class counts.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(sem_seg, Tensor):
        if sem_seg.dim() == 3:
            return sem_seg.max(0).indices  # on a CPU, argmax can take several times as long
        if sem_seg.dim() == 2 and not sem_seg.is_floating_point():
            return sem_seg
        given = f"{tuple(sem_seg.shape)} of {sem_seg.dtype}"
    else:
        given = f"a {type(sem_seg).__name__}"
    raise ValueError(
        f"sem_seg must be a tensor, (C, H, W) scores or (H, W) integer labels, got {given}"
    )


def regions_of(output: dict, key: str = REGIONS["tokens"]) -> ConceptRegions:
    """The regions under ``key`` in a model's output for one image.

    Raises:
        ValueError: if there are none, or they are not those of one image at a known stride.
    """
    regions = output.get(key)
    if regions is None:
        raise ValueError(
            f'the model\'s output has no "{key}": it records none. Wrap the model with '
            "sgr.supervise and let it have a module with tokens, or set "
            "TEST.TOKENS.ENABLED to False to evaluate without token metrics"
        )
    if regions.stride is None:
        raise ValueError("concept regions without a stride cannot be laid over an image")
    if regions.logits.shape[0] != 1:
        raise ValueError(
            f"concept regions of an image have batch size 1, got {regions.logits.shape[0]}; use "
            "ConceptRegions.crop"
        )
    return regions


@contextmanager
def scores_only(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, the model puts out ``sem_seg``, as scores, and nothing else.

    Raises:
        RuntimeError: if the model is in training mode.
    """
    if model.training:
        raise RuntimeError(f"{type(model).__name__} is in training mode: call eval() first")
    outputs = outputs_of(model)
    alone = _ALONE if outputs is None else outputs.alone
    before = {name: getattr(model, name) for name in alone if hasattr(model, name)}
    try:
        for name in before:
            setattr(model, name, alone[name])
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


def pixel_scores(model: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """``batch_scores`` of a model whose ``sem_seg_head`` returns (B, C, H', W') logits first."""
    logits, _ = model.sem_seg_head(model.backbone(images))
    return logits[..., : size[0], : size[1]]


def mask_scores(model: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """``batch_scores`` of a mask classifier; holds (B, Q, H, W) masks on the way.

    The sum over the queries of p(class) p(pixel in mask), as ``semantic_inference`` has it.
    """
    predictions = model.sem_seg_head(model.backbone(images))
    masks = F.interpolate(
        predictions["pred_masks"], size=images.shape[-2:], mode="bilinear", align_corners=False
    )[..., : size[0], : size[1]]
    probabilities = predictions["pred_logits"].softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", probabilities, masks.sigmoid())


_DETECTOR = Outputs(results=("instance",), joint_classes=False)

# By class name, which subclasses inherit: Detectron2's own models and the public MaskFormer, which
# is the public Mask2Former's class too, cannot declare anything themselves.
_ADAPTERS = {
    "SemanticSegmentor": Outputs(
        results=("semantic",), sem_seg="logits", batch_scores=pixel_scores
    ),
    # Its panoptic results are for Detectron2's "separated" datasets, which we do not evaluate.
    "PanopticFPN": Outputs(results=("semantic", "instance"), joint_classes=False),
    "GeneralizedRCNN": _DETECTOR,
    "DenseDetector": _DETECTOR,
    "MaskFormer": Outputs(
        results=tuple(RESULTS),
        switchable=True,
        sem_seg="scores",
        resizes_masks="sem_seg_postprocess_before_inference",
        batch_scores=mask_scores,
    ),
}


def thing_numbers(metadata: Metadata) -> list[int] | None:
    """The things among the classes of a model with one numbering for things and stuff.

    The classes of a dataset with label maps are its ``stuff_classes``. Its things are found there
    by name, because ``thing_dataset_id_to_contiguous_id`` may number them from 0.

    Args:
        metadata: of the dataset.

    Returns:
        Numbers of classes; None if the metadata do not tell.
    """
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = None if ids is None else sorted(set(ids.values()))
    classes = metadata.get("stuff_classes") or []
    things = metadata.get("thing_classes") or []
    # Detectron2's panoptic datasets repeat all classes as thing_classes. There the ids tell.
    names_tell = things and (ids is None or len(ids) == len(things))
    if names_tell and set(things) <= set(classes):
        return [classes.index(name) for name in things]
    return ids


def panoptic_classes(panoptic: tuple[Tensor, list[dict[str, Any]]], first_thing: int = 0) -> Tensor:
    """The class of each pixel of a ``panoptic_seg``.

    Args:
        panoptic: (H, W) ids, and the segments, as Detectron2 has them.
        first_thing: added to the categories of things, where they have numbers of their own.

    Returns:
        (H, W) int64 on the device of the ids, -1 where there is no segment.
    """
    ids, segments = panoptic
    # A segment may have no pixel that is left. The last entry is that of the id -1, no segment.
    last = max([int(ids.max()), *(segment["id"] for segment in segments)])
    classes = torch.full((last + 2,), -1, device=ids.device)
    for segment in segments:
        offset = first_thing if first_thing and segment["isthing"] else 0
        classes[segment["id"]] = segment["category_id"] + offset
    return classes[ids.long()]
