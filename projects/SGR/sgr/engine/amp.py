"""Training in mixed precision."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer


class AutocastTrainer(SimpleTrainer):
    """Detectron2's trainer in mixed precision: in bfloat16 if the device has it, else in float16.

    With float16, it scales the losses.
    """

    def __init__(self, model, data_loader, optimizer):
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        self.dtype = half_precision(self.device_type)
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=self.dtype == torch.float16
        )
        logging.getLogger(__name__).info("Mixed precision in %s", self.dtype)

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.dtype):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self._write_metrics(losses, data_time)
        # A fused optimizer would do it after the clipping.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # There is none in a checkpoint of a training in float32 or bfloat16.
        if state_dict.get("grad_scaler") and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def half_precision(device_type: str) -> torch.dtype:
    """The type that a device is fast in: bfloat16 if it has it, else float16."""
    # PyTorch would emulate bfloat16 on older GPUs, slowly; they are fast in float16.
    if device_type == "cuda" and torch.version.hip is None:
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    return torch.bfloat16
