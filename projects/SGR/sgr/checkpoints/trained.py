"""Loading a whole trained model, with nothing left at its random values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checkpointer import SafeCheckpointer


class TrainedCheckpointer(SafeCheckpointer):
    """Loads a trained model to use it: the file must fill all parameters, with finite numbers."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file as :class:`SafeCheckpointer` does.

        Raises:
            ValueError: a parameter of the model is missing in the file or has another shape, or one
                has nan or an infinite number, or a buffer, such as a running mean, has nan; see
                also :meth:`SafeCheckpointer.load`.
        """
        self._shapes: dict[str, list] = {}
        self._not_loaded: set[str] = set()
        rest = super().load(path, *args, **kwargs)
        self._check_complete(path)
        # Also the statistics of batch norms, in which a divergence stays. Masks may be infinite.
        buffers = dict(self.model.named_buffers())
        for name, value in self.model.state_dict().items():
            if not isinstance(value, Tensor):
                continue
            wrong = torch.isnan(value) if name in buffers else ~torch.isfinite(value)
            if wrong.any():
                raise ValueError(
                    f"{path!r} has nan or infinite numbers in {name}: its training has diverged; "
                    "take an earlier checkpoint, or train again with a lower SOLVER.BASE_LR"
                )
        return rest

    def _load_model(self, checkpoint: dict[str, Any]):
        incompatible = super()._load_model(checkpoint)
        self._shapes = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        self._not_loaded = {*incompatible.missing_keys, *self._shapes}
        return incompatible

    def _check_complete(self, path: str) -> None:
        for name, part in self.model.named_children():
            parameters = {f"{name}.{parameter}" for parameter, _ in part.named_parameters()}
            if parameters and parameters <= self._not_loaded - self._shapes.keys():
                raise ValueError(
                    f"{path!r} holds nothing of the model's {name}: these are weights to start a "
                    "training from; name a trained checkpoint with MODEL.WEIGHTS FILE"
                )
        # Buffers do not count: statistics and constants may come from elsewhere.
        names = [name for name, _ in self.model.named_parameters() if name in self._not_loaded]
        if names:
            first = names[0]
            problem = "is missing in the file"
            if first in self._shapes:
                old, new = map(tuple, self._shapes[first])
                problem = f"is {old} in the file, {new} in the model"
            raise ValueError(
                f"{path!r} does not fit {len(names)} of the model's parameters: {first} {problem}; "
                "is it a checkpoint of another config?"
            )
