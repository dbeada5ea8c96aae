"""Recording what modules put out while a model runs, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


def check_has_regions(model: nn.Module, otherwise: str = "", *, kind: type = nn.Module) -> None:
    """Check that a module of ``model`` makes concept regions.

    Args:
        otherwise: for the message, what one can do instead of adding a reasoning module.
        kind: the class that the module must have.

    Raises:
        ValueError: if there is no such module.
    """
    if not any(isinstance(module, kind) and _makes_regions(module) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no concept regions: put a reasoning module on the "
            "backbone (MODEL.BACKBONE.NAME build_sgr_backbone, or sgr.add_reasoning) or into an "
            "FCNHead (MODEL.SEM_SEG_HEAD.REASONING True)" + (otherwise and f", or {otherwise}")
        )


@contextmanager
def record_concepts(model: nn.Module, *, modules: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Record the concept regions that ``model`` makes inside the ``with`` block.

    A module makes regions if it has a method ``concept_regions(output) -> ConceptRegions``. Every
    :class:`~sgr.modeling.reasoning.ReasoningModule` has one, and so have predictors whose query
    masks can be read as regions. The hooks are removed at the end of the block, also after an
    exception.

    Args:
        modules: names of further modules. What they return is recorded as it is.

    Yields:
        A dict, filled as the model runs: name of the module -> its latest regions (or output), in
        the order in which they first came. They keep their graph.

    Example::

        with sgr.record_concepts(model) as record:
            model(images)
        regions = record["backbone.reasoning.res5"].probabilities  # (B, K, h, w)
    """
    record: dict[str, Any] = {}
    handles = []

    def watch(name: str, module: nn.Module, read) -> None:
        def hook(_module, _inputs, output):
            record[name] = read(output)

        handles.append(module.register_forward_hook(hook))

    try:
        for name in dict.fromkeys(modules):
            watch(name, model.get_submodule(name), lambda output: output)
        for name, module in model.named_modules():
            if _makes_regions(module):
                watch(name, module, module.concept_regions)
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _makes_regions(module: nn.Module) -> bool:
    return hasattr(module, "concept_regions")
