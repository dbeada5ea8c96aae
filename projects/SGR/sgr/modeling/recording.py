"""Recording what modules put out while a model runs, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .reasoning import ConceptRegions


def check_has_regions(model: nn.Module, otherwise: str = "", *, kind: type = nn.Module) -> None:
    """Check that a module of ``model`` makes concept regions.

    Args:
        otherwise: for the message, what one can do instead of adding a reasoning module.
        kind: the class that the module must have.

    Raises:
        ValueError: if there is no such module.
    """
    if not any(isinstance(module, kind) and makes_regions(module) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no concept regions: put a reasoning module on it "
            "(sgr.add_reasoning; in a config, MODEL.BACKBONE.NAME build_sgr_backbone, or "
            "MODEL.SEM_SEG_HEAD.REASONING True for an FCNHead)"
            + (otherwise and f", or {otherwise}")
        )


class ConceptRecord(dict[str, Any]):
    """What :func:`record_concepts` yields: name of a module -> its latest regions (or output).

    Attributes:
        learning: names of the reasoning modules of the model that learn from concept losses.
    """

    def __init__(self, learning: Iterable[str] = ()):
        super().__init__()
        self.learning = frozenset(learning)

    def supervised(self) -> dict[str, ConceptRegions]:
        """The recorded regions that learn from concept losses: name of the module -> regions.

        Raises:
            ValueError: if nothing is recorded, or nothing of the modules that learn.
        """
        found = {name: regions for name, regions in self.items() if name in self.learning}
        if not found and (self.learning or not self):
            missing = f" of {', '.join(sorted(self.learning))}" if self.learning else ""
            raise ValueError(
                f"no concept regions are recorded{missing}: put a reasoning module on the model "
                "(sgr.add_reasoning), and run it inside the with block of sgr.record_concepts; "
                "the first call of a compiled model (torch.compile) must be there, too"
            )
        return found


@contextmanager
def record_concepts(model: nn.Module, *, modules: Sequence[str] = ()) -> Iterator[ConceptRecord]:
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

    Cost: one walk over the modules of ``model`` for each block, about a microsecond for each, and
    one call for each recorded module and forward pass. Nothing is copied. The regions stay in
    memory as long as the record.

    Example::

        with sgr.record_concepts(model) as record:
            model(images)
        regions = record["backbone.reasoning.res5"].probabilities  # (B, K, h, w)
        loss = sgr.ConceptLoss()(record, component_maps)
    """
    sources = [(name, one) for name, one in model.named_modules() if makes_regions(one)]
    record = ConceptRecord(
        name for name, source in sources if getattr(source, "supervised_concepts", False)
    )
    handles = []

    def watch(name: str, module: nn.Module, read) -> None:
        def hook(_module, _inputs, output):
            record[name] = read(output)

        handles.append(module.register_forward_hook(hook))

    try:
        for name in dict.fromkeys(modules):
            watch(name, model.get_submodule(name), lambda output: output)
        for name, source in sources:
            watch(name, source, source.concept_regions)
        yield record
    finally:
        for handle in handles:
            handle.remove()


def makes_regions(module: nn.Module) -> bool:
    """Whether a module has a method ``concept_regions``, of its class or its own.

    Wrappers that pass on the attributes of another module, as ``torch.compile`` makes them, have
    none: the module inside has its regions, which would be recorded twice.
    """
    # Not hasattr(module, ...): where there is none, nn.Module makes an error and its message, which
    # takes ten times as long.
    return hasattr(type(module), "concept_regions") or "concept_regions" in vars(module)
