"""Concept supervision for any Detectron2 meta-architecture."""

from __future__ import annotations

import sys
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..reasoning import ConceptRegions, ReasoningModule
from ..recording import record_concepts
from .criterion import ConceptCriterion

__all__ = ["WAYS_TO_REGIONS", "supervise_concepts"]

# For the errors of those who ask for regions of a model without.
WAYS_TO_REGIONS = (
    "put a reasoning module on the backbone (MODEL.BACKBONE.NAME: build_sgr_resnet_backbone, or "
    "sgr.add_reasoning) or into an FCNHead (MODEL.SEM_SEG_HEAD.REASONING: True)"
)


def supervise_concepts(meta_arch_class: type[nn.Module]) -> type[nn.Module]:
    """Make a meta-architecture learn from, and put out, the concept regions of its model.

    The result is a subclass of the same parameters and arguments. It records the regions that its
    reasoning modules make during ``forward`` and

    * in training adds the concept losses (Eq. 6, 7) to the loss dict, as ``loss_concept_focal``,
      ``loss_concept_dice`` and ``loss_concept_cosine``. Every dict of the batch then has
      ``component_map`` (H, W) and ``component_classes`` (C,), as the mappers of
      :mod:`sgr.data` make them.
    * in evaluation, where asked, adds to each image's output dict ``concept_regions``, the
      :class:`~sgr.modeling.reasoning.ConceptRegions` of batch size 1 of the coarsest reasoning
      module, cut to the image. The query masks of a mask classifier come as ``query_regions``
      beside them, or, where there is no reasoning module, in their place.

    Built from a config, it reads ``cfg.MODEL.SGR.SUPERVISION`` (no losses where WEIGHT is 0) and
    ``cfg.TEST.TOKENS.ENABLED``; built with arguments, it takes two more, by keyword:
    ``concept_criterion`` (a :class:`ConceptCriterion` or None) and ``concepts_in_output`` (bool).

    Args:
        meta_arch_class: a module whose ``forward`` takes a list of dicts with "image" (3, H, W),
            and returns a dict of losses in training, a list of output dicts in evaluation.

    Returns:
        A class named "Concept" and the name of the given one, the name for registries too. It is
        of the module that calls; assigned there under its name, it can be pickled.

    Example::

        ConceptMyModel = sgr.supervise_concepts(MyModel)
        META_ARCH_REGISTRY.register(ConceptMyModel)  # MODEL.META_ARCHITECTURE: ConceptMyModel
    """

    class ConceptSupervised(meta_arch_class):
        def __init__(
            self,
            *args: Any,
            concept_criterion: ConceptCriterion | None = None,
            concepts_in_output: bool | None = None,
            **kwargs: Any,
        ):
            cfg = _find_config(args, kwargs)
            super().__init__(*args, **kwargs)
            if cfg is not None:
                if concept_criterion is None and cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0:
                    concept_criterion = ConceptCriterion.from_config(cfg)
                if concepts_in_output is None:
                    concepts_in_output = cfg.TEST.TOKENS.ENABLED
            if concept_criterion is not None:
                _check_supervisable(self)
            self.concept_criterion = concept_criterion
            self.concepts_in_output = bool(concepts_in_output)

        def forward(self, batched_inputs: list[dict[str, Any]]):
            if not (self.concept_criterion if self.training else self.concepts_in_output):
                return super().forward(batched_inputs)
            with record_concepts(self) as record:
                outputs = super().forward(batched_inputs)
            if self.training:
                return {**outputs, **_concept_losses(self, record, batched_inputs)}
            shown = _regions_to_show(self, record)
            for index, (image, output) in enumerate(zip(batched_inputs, outputs)):
                size = image["image"].shape[-2:]
                output.update((key, each.crop(index, *size)) for key, each in shown.items())
            return outputs

    ConceptSupervised.__name__ = f"Concept{meta_arch_class.__name__}"
    ConceptSupervised.__qualname__ = ConceptSupervised.__name__
    # Where pickle looks for it, as for a namedtuple: in the caller's module.
    ConceptSupervised.__module__ = sys._getframe(1).f_globals.get("__name__", "__main__")
    ConceptSupervised.__doc__ = (
        f":class:`{meta_arch_class.__name__}` with concept supervision; see "
        ":func:`sgr.supervise_concepts`."
    )
    return ConceptSupervised


def _find_config(args, kwargs) -> CfgNode | None:
    candidates = [*args[:1], kwargs.get("cfg")]
    cfg = next((each for each in candidates if isinstance(each, CfgNode)), None)
    if cfg is not None and "SGR" not in cfg.MODEL:
        raise ValueError("the config has no MODEL.SGR; call sgr.add_sgr_config(cfg) first")
    return cfg


def _check_supervisable(model: nn.Module) -> None:
    if any(_is_supervised(model, name) for name, _ in model.named_modules()):
        return
    unsupervised = {
        type(module).__name__ for module in model.modules() if isinstance(module, ReasoningModule)
    }
    if unsupervised:
        raise ValueError(
            f"{', '.join(sorted(unsupervised))} learns without concept losses: set "
            "MODEL.SGR.SUPERVISION.WEIGHT to 0.0"
        )
    raise ValueError(
        f"{type(model).__name__} has no reasoning module to supervise: {WAYS_TO_REGIONS}, or set "
        "MODEL.SGR.SUPERVISION.WEIGHT to 0.0"
    )


def _concept_losses(
    model: nn.Module, record: dict[str, ConceptRegions], batched_inputs: list[dict[str, Any]]
) -> dict[str, Tensor]:
    missing = [i for i, image in enumerate(batched_inputs) if "component_map" not in image]
    if missing:
        raise ValueError(
            f"input {missing[0]} ({batched_inputs[missing[0]].get('file_name', 'no file name')}) "
            "has no 'component_map'; train with a mapper of sgr.data (INPUT.DATASET_MAPPER_NAME), "
            "or set MODEL.SGR.SUPERVISION.WEIGHT to 0.0"
        )
    component_maps = [image["component_map"] for image in batched_inputs]
    counts = [len(image["component_classes"]) for image in batched_inputs]
    losses: dict[str, Tensor] = {}
    for name, regions in record.items():
        if not _is_supervised(model, name):
            continue
        result = model.concept_criterion(regions, component_maps, counts)
        for term, loss in result.losses.items():
            key = f"loss_concept_{term}"
            losses[key] = losses[key] + loss if key in losses else loss
    try:
        get_event_storage().put_scalar("sgr/components_per_image", sum(counts) / len(counts))
    except AssertionError:  # outside of a trainer there is nobody to tell
        pass
    return losses


def _regions_to_show(
    model: nn.Module, record: dict[str, ConceptRegions]
) -> dict[str, ConceptRegions]:
    """The coarsest regions of each kind, by their key in an image's output."""
    if not record:
        raise RuntimeError(
            f"{type(model).__name__} made no concept regions: {WAYS_TO_REGIONS}, or set "
            "TEST.TOKENS.ENABLED to False"
        )
    reasoned, queries = [], []
    for name, regions in record.items():
        from_reasoning = isinstance(model.get_submodule(name), ReasoningModule)
        (reasoned if from_reasoning else queries).append(regions)
    found = [
        max(kind, key=lambda regions: regions.stride or 0) for kind in (reasoned, queries) if kind
    ]
    return dict(zip(("concept_regions", "query_regions"), found))


def _is_supervised(model: nn.Module, name: str) -> bool:
    return getattr(model.get_submodule(name), "supervised_concepts", False)
