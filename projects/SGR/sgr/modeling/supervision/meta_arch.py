"""Side criteria, concept supervision the first of them, for any Detectron2 meta-architecture."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import nn

from ..outputs import REGIONS
from ..reasoning import ConceptRegions, ReasoningModule
from ..recording import check_has_regions, record_concepts
from .criterion import ConceptCriterion
from .side_criteria import ConceptSupervision, SideCriterion, build_side_criteria, learns_concepts


class Supervised(nn.Module):
    """Mixin of the classes that :func:`supervise` makes, before the meta-architecture.

    Attributes:
        side_criteria: name of its class -> criterion.
        concepts_in_output: whether outputs have the regions of their image.
    """

    side_criteria: nn.ModuleDict
    extra_criteria: Sequence[SideCriterion] = ()

    def __init__(
        self,
        *args: Any,
        concept_criterion: ConceptCriterion | None = None,
        concepts_in_output: bool | None = None,
        **kwargs: Any,
    ):
        cfg = _find_config(args, kwargs)
        super().__init__(*args, **kwargs)
        criteria = [] if cfg is None else build_side_criteria(cfg, self)
        criteria += [copy.deepcopy(criterion) for criterion in self.extra_criteria]
        if concept_criterion is not None and learns_concepts(self):
            criteria.append(ConceptSupervision(concept_criterion))
        if concepts_in_output is None:
            concepts_in_output = cfg is not None and cfg.TEST.TOKENS.ENABLED
        self.concepts_in_output = concepts_in_output
        self.side_criteria = nn.ModuleDict({type(one).__name__: one for one in criteria})

    @property
    def concept_criterion(self) -> ConceptCriterion | None:
        """What gives the concept losses; None if the model trains without them."""
        for criterion in self.side_criteria.values():
            if isinstance(criterion, ConceptSupervision):
                return criterion.criterion
        return None

    def forward(self, batched_inputs: list[dict[str, Any]]):
        criteria = list(self.side_criteria.values()) if self.training else []
        if not criteria and (self.training or not self.concepts_in_output):
            return super().forward(batched_inputs)
        modules = [name for criterion in criteria for name in criterion.recorded_modules]
        with record_concepts(self, modules=modules) as record:
            outputs = super().forward(batched_inputs)
        if self.training:
            losses = dict(outputs)
            for criterion in criteria:
                more = criterion(self, record, batched_inputs)
                if repeated := losses.keys() & more.keys():
                    raise ValueError(
                        f"{type(criterion).__name__} gives a loss of a name that is taken: "
                        f"{', '.join(sorted(repeated))}; name it otherwise"
                    )
                losses.update(more)
            _log_components(batched_inputs)
            return losses
        shown = _regions_to_show(self, record)
        for index, (image, output) in enumerate(zip(batched_inputs, outputs)):
            size = image["image"].shape[-2:]
            output.update((key, regions.crop(index, *size)) for key, regions in shown.items())
        return outputs


def supervise(
    meta_arch_class: type[nn.Module], criteria: Sequence[SideCriterion] = ()
) -> type[nn.Module]:
    """Make a meta-architecture learn from side criteria, and put out its concept regions.

    The result is a subclass with the same parameters and arguments. It records the regions that its
    reasoning modules make during ``forward``.

    * In training, it adds the losses of its criteria to the loss dict: of ``criteria``, and of
      those that ``cfg.MODEL.SIDE_CRITERIA`` names if it is built from a config. By default, these
      are the concept losses (Eq. 6, 7): ``loss_concept_focal``, ``loss_concept_dice`` and
      ``loss_concept_cosine``. They need inputs with components: see :class:`ConceptSupervision`.
    * In evaluation, it adds ``concept_regions`` to the output dict of each image if it is told to:
      the :class:`~sgr.modeling.reasoning.ConceptRegions` of batch size 1 of the coarsest reasoning
      module, cut to the image. The query masks of a mask classifier come as ``query_regions``.
      Without a reasoning module, they come as ``concept_regions``.

    Built from a config, it reads ``cfg.MODEL.SGR.SUPERVISION`` (no concept losses if WEIGHT is 0)
    and ``cfg.TEST.TOKENS.ENABLED``. Built with arguments, it takes two more, by keyword:
    ``concept_criterion`` (a :class:`ConceptCriterion` or None) and ``concepts_in_output`` (bool).

    Args:
        meta_arch_class: a module whose ``forward`` takes a list of dicts with "image" (3, H, W). It
            returns a dict of losses in training, a list of output dicts in evaluation.
        criteria: at most one of each class; each model gets a copy. One replaces the criterion of
            its class that a config asks for.

    Returns:
        A class named "Concept" and the name of the given one; registries use this name. It is of
        the module that calls. If it is assigned there under its name, it can be pickled.

    Example::

        ConceptMyModel = sgr.supervise(MyModel)
        META_ARCH_REGISTRY.register(ConceptMyModel)  # MODEL.META_ARCHITECTURE: ConceptMyModel
    """
    attributes = {
        "extra_criteria": tuple(criteria),
        # Where pickle looks for it, as for a namedtuple: in the caller's module.
        "__module__": sys._getframe(1).f_globals.get("__name__", "__main__"),
        "__doc__": f":class:`{meta_arch_class.__name__}`, supervised: see :func:`sgr.supervise`.",
    }
    name = f"Concept{meta_arch_class.__name__}"
    return type(name, (Supervised, meta_arch_class), attributes)


def _find_config(args, kwargs) -> CfgNode | None:
    candidates = (*args[:1], kwargs.get("cfg"))
    cfg = next((value for value in candidates if isinstance(value, CfgNode)), None)
    if cfg is not None and "SGR" not in cfg.MODEL:
        raise ValueError("the config has no MODEL.SGR; call sgr.add_sgr_config(cfg) first")
    return cfg


def _log_components(batched_inputs: list[dict[str, Any]]) -> None:
    if any("component_classes" not in image for image in batched_inputs):
        return
    counts = [len(image["component_classes"]) for image in batched_inputs]
    try:
        get_event_storage().put_scalar("sgr/components_per_image", sum(counts) / len(counts))
    except AssertionError:  # outside of a trainer there is no storage
        pass


def _regions_to_show(
    model: nn.Module, record: dict[str, ConceptRegions]
) -> dict[str, ConceptRegions]:
    """The coarsest regions of each kind, by their key in an image's output."""
    check_has_regions(model, "set TEST.TOKENS.ENABLED to False")
    coarsest: dict[bool, ConceptRegions] = {}
    for name, regions in sorted(record.items(), key=lambda item: -(item[1].stride or 0)):
        is_query = not isinstance(model.get_submodule(name), ReasoningModule)
        coarsest.setdefault(is_query, regions)
    kinds = [coarsest[is_query] for is_query in (False, True) if is_query in coarsest]
    return dict(zip(REGIONS.values(), kinds))
