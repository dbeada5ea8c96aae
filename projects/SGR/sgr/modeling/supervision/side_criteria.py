"""Criteria that add losses to those of any model. The first of them makes regions semantic."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..layers.checks import find_registered
from ..reasoning import ReasoningModule
from ..recording import check_has_regions
from .criterion import ConceptCriterion

SIDE_CRITERION_REGISTRY = Registry("SIDE_CRITERION")
SIDE_CRITERION_REGISTRY.__doc__ = """
Criteria beside a model's own: subclasses of :class:`SideCriterion`. ``cfg.MODEL.SIDE_CRITERIA``
names those of a model.
"""

NO_LOSSES = "set MODEL.SGR.SUPERVISION.WEIGHT to 0.0"


class SideCriterion(nn.Module):
    """Base of the criteria that :func:`sgr.supervise` adds to a model.

    Attributes:
        recorded_modules: names of modules in the model, such as "backbone". What they return in a
            forward pass is in the record, beside the regions.
    """

    recorded_modules: Sequence[str] = ()

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> SideCriterion | None:
        """Build the criterion for a model; None if there is nothing to learn from it."""
        raise NotImplementedError

    def forward(
        self,
        model: nn.Module,
        record: Mapping[str, Any],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            model: the model, after its own forward pass.
            record: name of a module -> its :class:`~sgr.modeling.reasoning.ConceptRegions`, or its
                output for the modules in :attr:`recorded_modules`. It is that of
                :func:`sgr.record_concepts`.
            batched_inputs: what the model was called with.

        Returns:
            Name -> weighted scalar. No other loss of the model may have this name.
        """
        raise NotImplementedError


def check_inputs(batched_inputs: Sequence[Mapping[str, Any]], key: str, missing: str) -> None:
    """Raise a ValueError that names the first input without ``key``, and says what is missing."""
    for index, image in enumerate(batched_inputs):
        if key not in image:
            name = image.get("file_name", "no file name")
            raise ValueError(f"input {index} ({name}) has no {missing}")


def build_side_criteria(cfg, model: nn.Module) -> list[SideCriterion]:
    """Build the criteria that ``cfg.MODEL.SIDE_CRITERIA`` names for a model.

    Raises:
        ValueError: if there is no criterion of a name; see the criteria for more.
    """
    criteria = []
    for name in cfg.MODEL.SIDE_CRITERIA:
        cls = find_registered(SIDE_CRITERION_REGISTRY, name, "an entry of MODEL.SIDE_CRITERIA")
        criterion = cls.from_config(cfg, model)
        if criterion is not None:
            criteria.append(criterion)
    return criteria


@SIDE_CRITERION_REGISTRY.register()
class ConceptSupervision(SideCriterion):
    """The concept losses (Eq. 6, 7) of all reasoning modules of a model that learn from them.

    The losses of several modules are added. Each input needs ``component_map`` (H, W) and
    ``component_classes`` (C,), as the mappers of :mod:`sgr.data` make them.
    """

    def __init__(self, criterion: ConceptCriterion):
        super().__init__()
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> ConceptSupervision | None:
        """Build it from ``cfg.MODEL.SGR``.

        Returns:
            None if SUPERVISION.WEIGHT is 0, or no reasoning module of the model learns from concept
            losses. A line of the log says the latter, or that nothing trains the regions.

        Raises:
            ValueError: if the model has no reasoning module; see also
                :meth:`ConceptCriterion.from_config`.
        """
        if cfg.MODEL.SGR.SUPERVISION.WEIGHT == 0:
            if any(getattr(module, "detach_regions", False) for module in model.modules()):
                logging.getLogger(__name__).warning(
                    "Nothing trains the concept regions, which stay as they start: "
                    "MODEL.SGR.DETACH_REGIONS is True, and MODEL.SGR.SUPERVISION.WEIGHT 0"
                )
            return None
        return cls(ConceptCriterion.from_config(cfg)) if learns_concepts(model) else None

    def forward(self, model, record, batched_inputs) -> dict[str, Tensor]:
        check_inputs(
            batched_inputs,
            "component_map",
            "'component_map'; train with a mapper of sgr.data (INPUT.DATASET_MAPPER_NAME), or "
            + NO_LOSSES,
        )
        component_maps = [image["component_map"] for image in batched_inputs]
        counts = [len(image["component_classes"]) for image in batched_inputs]
        losses = self.criterion.of_record(record, component_maps, counts)
        return {f"loss_concept_{term}": loss for term, loss in losses.items()}


def learns_concepts(model: nn.Module) -> bool:
    """Whether a reasoning module of ``model`` learns from concept losses; if not, it is logged.

    Raises:
        ValueError: if the model has no reasoning module.
    """
    check_has_regions(model, NO_LOSSES, kind=ReasoningModule)
    modules = [module for module in model.modules() if isinstance(module, ReasoningModule)]
    if any(module.supervised_concepts for module in modules):
        return True
    names = ", ".join(sorted({type(module).__name__ for module in modules}))
    logging.getLogger(__name__).info("No concept losses: %s learns without them", names)
    return False
