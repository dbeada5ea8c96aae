"""What a resumed training finds in its checkpoint, and what holds where the config has changed."""

from __future__ import annotations

import logging
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from .config_check import flat

# These may differ from run to run without a change of what is trained.
_OF_THE_MACHINE = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "VERSION")


def config_changes(before: str, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Key -> values before and now, of the keys whose values differ.

    Args:
        before: a config as YAML, as ``CfgNode.dump`` gives it.
    """
    old, new = (dict(flat(yaml.safe_load(text))) for text in (before, cfg.dump()))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in _OF_THE_MACHINE
    }


def report_changes(changes: dict[str, tuple[Any, Any]]) -> None:
    """Log how the config differs from that of the checkpoint."""
    if changes:
        rows = [(key, before, now) for key, (before, now) in changes.items()]
        table = tabulate(rows, ("key", "checkpoint", "now, which holds"), tablefmt="pipe")
        logging.getLogger(__name__).warning(
            "The config has changed since the checkpoint was written:\n%s", table
        )


def check_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], changes: dict[str, tuple[Any, Any]]
) -> None:
    """Raise an error if the optimizer cannot go on from the state of a checkpoint.

    Args:
        optimizer: the one that the config asks for.
        state: the ``state_dict`` of that in the checkpoint.
        changes: of :func:`config_changes`, to name the keys.

    Raises:
        ValueError: if the state is that of another kind of optimizer or of other parameters.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    # Other options come and go with the versions of PyTorch.
    if ("momentum" in saved[0]) != ("momentum" in groups[0]):
        problem = "the state is that of another kind of optimizer"
        keys = "SOLVER.OPTIMIZER"
    elif [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        counts = [sum(len(group["params"]) for group in each) for each in (saved, groups)]
        problem = f"its optimizer has {counts[0]} parameters, and this training {counts[1]}"
        keys = "what decides which parameters are trained, such as MODEL.BACKBONE.FREEZE_AT"
        if counts[0] == counts[1]:
            problem = "its optimizer has the parameters in other groups"
            keys = "SOLVER.TOKEN_MIXER_MULTIPLIER, BIAS_LR_FACTOR and WEIGHT_DECAY_BIAS"
    else:
        return
    raise ValueError(
        f"--resume cannot go on from the checkpoint: {problem}{_listed(changes)}. Set {keys} as it "
        "was, or start anew from its weights: without --resume, with MODEL.WEIGHTS and another "
        "OUTPUT_DIR"
    )


def _listed(changes: dict[str, tuple[Any, Any]]) -> str:
    if not changes:
        return ""
    few = list(changes.items())[:5]
    listed = ", ".join(f"{key} was {before} and is {now}" for key, (before, now) in few)
    more = f", and {len(changes) - len(few)} more" if len(changes) > len(few) else ""
    return f" (changed since: {listed}{more})"


def apply_solver(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    options: list[dict[str, Any]],
    schedule: dict[str, Any],
) -> None:
    """Let the config's rates, decays and schedule hold, and not those of a loaded checkpoint.

    It changes nothing if the config has not changed.

    Args:
        optimizer, scheduler: with the state of a checkpoint.
        options: of each parameter group, as the optimizer was built.
        schedule: attributes of the scheduler, as it was built.
    """
    for group, option in zip(optimizer.param_groups, options):
        group.update(option)
    progress = ("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "optimizer")
    vars(scheduler).update((k, v) for k, v in schedule.items() if k not in progress)
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr()):
        group["lr"] = rate
