"""Parameter groups, optimisers and schedules (the paper's Sec. 5.2 and A.1)."""

from __future__ import annotations

import logging
from collections import defaultdict
from itertools import chain
from typing import Any

import torch
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import ParamScheduler, PolynomialDecayParamScheduler
from tabulate import tabulate
from torch import nn

from ..modeling.reasoning import ReasoningModule, SemanticGlobalReasoning

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(cfg, model: nn.Module) -> list[dict]:
    """Group the trainable parameters by learning rate and weight decay, and log a table of them.

    * The rate is ``SOLVER.BASE_LR``. In ``model.backbone`` it is multiplied by
      ``SOLVER.BACKBONE_MULTIPLIER``, except in reasoning modules: these have the rate of the head
      wherever they sit. In SGR's token mixers it is multiplied by
      ``SOLVER.TOKEN_MIXER_MULTIPLIER``.
    * The weight decay is ``SOLVER.WEIGHT_DECAY``. Normalisation layers have ``WEIGHT_DECAY_NORM``,
      embeddings ``WEIGHT_DECAY_EMBED``, and other biases ``WEIGHT_DECAY_BIAS``, if it is set.
      Embeddings are the weights of ``nn.Embedding``, and the parameters that a module names in a
      method ``no_weight_decay() -> names``, as timm's models do.

    Returns:
        Groups for a torch optimiser, with "name", in the order in which they first come.
    """
    backbone = getattr(model, "backbone", None)
    slow = {id(p) for p in backbone.parameters()} if backbone is not None else set()
    mixers: set[int] = set()
    for module in model.modules():
        if isinstance(module, ReasoningModule):
            slow -= {id(p) for p in module.parameters()}
        if isinstance(module, SemanticGlobalReasoning) and cfg.SOLVER.TOKEN_MIXER_MULTIPLIER != 1:
            mixers |= {id(p) for p in module.mixer.parameters()}

    embeddings: set[int] = set()
    for module in model.modules():
        if hasattr(module, "no_weight_decay"):
            names = module.no_weight_decay()
            embeddings |= {id(p) for name, p in module.named_parameters() if name in names}
    # Where biases are set as weights are, attention's in_proj_bias stays among the weights, so that
    # trainings of earlier versions can be resumed.
    are_biases_apart = cfg.SOLVER.BIAS_LR_FACTOR != 1 or cfg.SOLVER.WEIGHT_DECAY_BIAS is not None
    groups: dict[tuple[str, str], list[nn.Parameter]] = defaultdict(list)
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            place = "backbone" if id(parameter) in slow else "head and reasoning"
            place = "token mixers" if id(parameter) in mixers else place
            kind = _kind(module, name, parameter, are_biases_apart)
            kind = "embeddings" if id(parameter) in embeddings else kind
            groups[place, kind].append(parameter)

    rates = {
        "backbone": cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER,
        "head and reasoning": cfg.SOLVER.BASE_LR,
        "token mixers": cfg.SOLVER.BASE_LR * cfg.SOLVER.TOKEN_MIXER_MULTIPLIER,
    }
    bias_decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
    decays = {
        "weights": cfg.SOLVER.WEIGHT_DECAY,
        "norms": cfg.SOLVER.WEIGHT_DECAY_NORM,
        "embeddings": cfg.SOLVER.WEIGHT_DECAY_EMBED,
        "biases": cfg.SOLVER.WEIGHT_DECAY if bias_decay is None else bias_decay,
    }
    result = [
        {
            "name": f"{place}: {kind}",
            "params": parameters,
            "lr": rates[place] * (cfg.SOLVER.BIAS_LR_FACTOR if kind == "biases" else 1.0),
            "weight_decay": decays[kind],
        }
        for (place, kind), parameters in groups.items()
    ]
    logging.getLogger(__name__).info("Parameter groups:\n%s", _table(result))
    return result


def _kind(module: nn.Module, name: str, parameter: nn.Parameter, are_biases_apart: bool) -> str:
    if isinstance(module, NORMS):
        return "norms"
    # Such as RMSNorm and timm's norms.
    if name == "weight" and parameter.dim() == 1:
        return "norms"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    is_bias = name == "bias" or (are_biases_apart and name.endswith("bias"))
    return "biases" if is_bias else "weights"


def _table(groups: list[dict]) -> str:
    rows = [
        (
            group["name"],
            group["lr"],
            group["weight_decay"],
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
        )
        for group in groups
    ]
    headers = ("group", "learning rate", "weight decay", "tensors", "parameters")
    return tabulate(rows, headers, tablefmt="pipe", floatfmt="g", intfmt=",")


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD or AdamW (``SOLVER.OPTIMIZER``) for the :func:`parameter_groups` of a model.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the norm of all gradients together.
    Detectron2's own types clip each parameter by itself.

    Raises:
        ValueError: for another optimiser.
    """
    optimizer_class: type[torch.optim.Optimizer]
    # A fused step reads and writes each parameter once.
    arguments: dict[str, Any] = {"fused": True}
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name == "SGD":
        optimizer_class = torch.optim.SGD
        arguments |= {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    elif name == "ADAMW":
        optimizer_class = torch.optim.AdamW
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; known: SGD, ADAMW")
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        optimizer_class = _clip_full_model(optimizer_class, clipping.CLIP_VALUE, clipping.NORM_TYPE)
    else:
        optimizer_class = maybe_add_gradient_clipping(cfg, optimizer_class)
    return optimizer_class(parameter_groups(cfg, model), lr=cfg.SOLVER.BASE_LR, **arguments)


def _clip_full_model(
    optimizer_class: type[torch.optim.Optimizer], max_norm: float, norm_type: float
):
    class FullModelClipping(optimizer_class):  # type: ignore[valid-type, misc]
        def step(self, closure=None):
            parameters = chain.from_iterable(group["params"] for group in self.param_groups)
            nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure=closure)

    return FullModelClipping


class _Floor(ParamScheduler):
    """A schedule that does not fall below a floor."""

    def __init__(self, schedule: ParamScheduler, floor: float):
        self.schedule = schedule
        self.floor = floor

    def __call__(self, where: float) -> float:
        return max(self.schedule(where), self.floor)


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer):
    """Build a schedule of Detectron2, or "WarmupPolyLR": ``(1 - iteration / total)^POLY_LR_POWER``.

    During the warm-up, "WarmupPolyLR" rises from WARMUP_FACTOR to the value of the polynomial at
    the end of the warm-up, as Detectron2's own schedules do. The schedule of this name in
    Detectron2's DeepLab project multiplies the polynomial by the ramp instead. During the warm-up
    the two are up to 0.02 of BASE_LR apart; then they are equal. Ours stays, so that the figures of
    configs with a warm-up stay.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        _Floor(
            PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
            solver.POLY_LR_CONSTANT_ENDING,
        ),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
