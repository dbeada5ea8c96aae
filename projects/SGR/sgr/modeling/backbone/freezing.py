"""What backbones have in common whose first parts can be frozen."""

from __future__ import annotations

import logging

from detectron2.modeling import Backbone
from torch import nn


class FreezableBackbone(Backbone):
    """Base of backbones whose first parts can be frozen, as those of Detectron2's ResNet.

    Subclasses implement :meth:`_parts`, or :meth:`freeze` where their parts are no modules, and
    call :meth:`freeze` at the end of their constructor.

    Attributes:
        title: how the log names the network.
        first_part: how the log names what comes before the first stage.
    """

    title: str
    first_part = "the embedding of the patches"

    def __init__(self) -> None:
        super().__init__()
        self._freeze_at = 0
        self._frozen: list[nn.Module] = []

    def freeze(self, freeze_at: int = 0) -> FreezableBackbone:
        """Freeze the first parts, as the method of Detectron2's ResNet does.

        Frozen parts are not trained, and have no dropped paths and no dropout. Parts that were
        frozen before stay frozen. A line of the log names the frozen parts.

        Args:
            freeze_at: 0 or less freezes nothing. 1 freezes the embedding of the patches, 2 the
                first stage ("res2") as well, and so on. The step from one stage to the next belongs
                to the latter.

        Returns:
            The same backbone.
        """
        self._freeze_at = max(self._freeze_at, freeze_at)
        parts = self._parts()[: self._freeze_at]
        self._frozen = [module for part in parts for module in part]
        for module in self._frozen:
            module.requires_grad_(False)
        if parts:
            stages = [f"res{index + 2}" for index in range(len(parts) - 1)]
            logging.getLogger(__name__).info(
                "Not trained in %s are %s (MODEL.BACKBONE.FREEZE_AT %d; 0 trains all)",
                self.title,
                ", ".join([self.first_part, *stages]),
                self._freeze_at,
            )
        return self.train(self.training)

    def train(self, mode: bool = True) -> FreezableBackbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _parts(self) -> list[list[nn.Module]]:
        """The modules that :meth:`freeze` counts: the embedding, then those of each stage."""
        raise NotImplementedError
