"""Catching the concept regions that pass by while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .reasoning import ConceptRegions

__all__ = ["has_regions", "record_concepts"]


def has_regions(model: nn.Module) -> bool:
    """Whether a module of ``model`` makes regions that :func:`record_concepts` would record."""
    return any(_makes_regions(module) for module in model.modules())


@contextmanager
def record_concepts(model: nn.Module) -> Iterator[dict[str, ConceptRegions]]:
    """Record the concept regions that ``model`` makes inside the ``with`` block.

    A module makes regions if it has a method ``concept_regions(output) -> ConceptRegions``: every
    :class:`~sgr.modeling.reasoning.ReasoningModule`, and the predictors whose query masks can be
    read as regions. Works by forward hooks, which are gone when the block is left, by an exception
    too.

    Yields:
        A dict, filled as the model runs: name of the module -> its latest regions, in the order in
        which they first came. The regions keep their graph.

    Example::

        with sgr.record_concepts(model) as record:
            model(images)
        regions = record["backbone.reasoning.res5"].probabilities  # (B, K, h, w)
    """
    record: dict[str, ConceptRegions] = {}
    handles = []
    try:
        for name, module in model.named_modules():
            if _makes_regions(module):
                handles.append(module.register_forward_hook(_recorder(record, name)))
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _makes_regions(module: nn.Module) -> bool:
    return hasattr(module, "concept_regions")


def _recorder(record: dict[str, ConceptRegions], name: str):
    def hook(module, _inputs, output):
        record[name] = module.concept_regions(output)

    return hook
