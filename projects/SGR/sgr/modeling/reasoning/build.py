"""The registry of reasoning modules, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..layers.checks import find_registered
from .concept_regions import ConceptRegions

REASONING_REGISTRY = Registry("REASONING")
REASONING_REGISTRY.__doc__ = """
Reasoning modules: subclasses of :class:`ReasoningModule`, chosen by ``cfg.MODEL.SGR.NAME``.
"""


class ReasoningModule(nn.Module):
    """Base of the modules that enhance a feature map through tokens.

    ``forward`` maps features (B, C, h, w) to features (B, C, h, w) and :class:`ConceptRegions`.
    Optimisers, recorders and cost tables find reasoning modules by this class.

    Attributes:
        supervised_concepts: whether its regions learn from connected components, if the model is
            trained with concept losses.
        config_defaults: key below ``cfg.MODEL.SGR`` -> default, where the module wants another than
            :mod:`sgr.config` has. See :func:`apply_reasoning_defaults`.

    Args:
        in_channels: C.
        stride: pixels per cell of the input; :meth:`concept_regions` adds it to the regions.
    """

    supervised_concepts = True
    config_defaults: Mapping[str, Any] = {}

    def __init__(self, in_channels: int, *, stride: int | None = None):
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """Read the constructor's keyword arguments, all but ``stride``, from a config."""
        raise NotImplementedError

    def check_features(self, x: Tensor) -> None:
        """Check an input of :meth:`forward`, which calls this first.

        Raises:
            ValueError: if it is not a tensor (B, in_channels, h, w).
        """
        if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] == self.in_channels:
            return
        given = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        last = isinstance(x, Tensor) and x.dim() == 4 and x.shape[3] == self.in_channels
        raise ValueError(
            f"{type(self).__name__} takes features (B, C, h, w) of C = {self.in_channels} channels "
            f"(in_channels), got {given}"
            + (
                "; the channels come last there: permute(0, 3, 1, 2) them, or let "
                "sgr.add_reasoning, given the class or an example, find that out"
                if last
                else ""
            )
        )

    def concept_regions(self, output: tuple[Tensor, ConceptRegions]) -> ConceptRegions:
        """Return the regions in an output of :meth:`forward`, with their stride; for recorders."""
        return output[1]._replace(stride=self.stride)


def batch_norm_of_update(channels: int, *, sync: bool, zero: bool) -> nn.Module:
    """Build the batch norm of what a reasoning module adds to its input.

    Args:
        channels: C.
        sync: normalise over the batches of all GPUs.
        zero: start with a weight of zero, so that nothing is added. The convolution before it must
            not be zero instead, for a norm magnifies most what has no variance.
    """
    norm = nn.SyncBatchNorm if sync else nn.BatchNorm2d
    layer = norm(channels, eps=1e-4)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


def apply_reasoning_defaults(cfg, name: str) -> bool:
    """Replace defaults of ``cfg.MODEL.SGR`` by those of a reasoning module.

    Args:
        cfg: a config into which no file is merged yet, so that explicit values win.
        name: of the module in :data:`REASONING_REGISTRY`. Nothing happens for an unknown one.

    Returns:
        Whether the module has defaults of its own.
    """
    module = REASONING_REGISTRY.get(name) if name in REASONING_REGISTRY else ReasoningModule
    for key, value in module.config_defaults.items():
        cfg.merge_from_list([f"MODEL.SGR.{key}", value])
    return bool(module.config_defaults)


def build_reasoning(cfg, in_channels: int, *, stride: int | None = None) -> ReasoningModule:
    """Build the module that ``cfg.MODEL.SGR.NAME`` names for a feature map of ``in_channels``.

    An unknown name raises a ValueError.
    """
    module = find_registered(REASONING_REGISTRY, cfg.MODEL.SGR.NAME, "MODEL.SGR.NAME")
    return module(in_channels, stride=stride, **module.from_config(cfg))
