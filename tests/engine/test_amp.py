"""Mixed precision."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from sgr import add_sgr_config
from sgr.engine.amp import AutocastTrainer
from sgr.engine.solver import build_optimizer


class Losses(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, data):
        return {"loss": (self.weight * data).sum()}


@pytest.mark.parametrize("clip_type", ["full_model", "norm", "value"])
def test_gradients_are_clipped_without_the_scale_of_the_losses(clip_type):
    """As the training is in float16, which has a scale, also on a CPU."""
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM = "SGD", 1.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    steps = []
    for scaled in (False, True):
        model = Losses()
        before = model.weight.detach().clone()
        data = [torch.tensor([3.0, 0.1, 4.0])]
        trainer = AutocastTrainer(model, data, build_optimizer(cfg, model))
        trainer.grad_scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        with EventStorage() as trainer.storage:
            trainer.run_step()
        steps.append(before - model.weight.detach())
    assert steps[0].abs().max() > 0.1
    torch.testing.assert_close(steps[1], steps[0])
