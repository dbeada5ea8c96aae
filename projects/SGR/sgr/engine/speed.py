"""Memory format and compilation of a model: MODEL.CHANNELS_LAST and MODEL.COMPILE."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling.reasoning import ReasoningModule

# Parts of the models here that compile without a graph break. Criteria and predictors stay as they
# are: matching runs on the CPU, and what a criterion gets has another shape in every batch.
_PARTS = ("backbone", "sem_seg_head.pixel_decoder")


def arrange_memory(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Bring the 4-D parameters of a model into the memory format of MODEL.CHANNELS_LAST, in place.

    Convolutions put out the format of their weights, so that images need no change.

    Returns:
        The same model.
    """
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    return model


def compile_for_training(model: nn.Module, cfg: CfgNode) -> list[str]:
    """Let PyTorch compile parts of a model when they run, if MODEL.COMPILE is True.

    These are the backbone with what is on it, the pixel decoder, and reasoning modules elsewhere.
    The modules stay the same objects, with the same parameters and names. Call it after all
    modules are on the model, and before DDP.

    Returns:
        The names of the parts.

    Raises:
        ValueError: if PyTorch is older than 2.6, the machine cannot compile, or the model has none
            of these parts.
    """
    if not cfg.MODEL.COMPILE:
        return []
    modules = dict(model.named_modules())
    names = [name for name in _PARTS if name in modules]
    names += [
        name
        for name, module in modules.items()
        if isinstance(module, ReasoningModule)
        and not any(name.startswith(f"{part}.") for part in names)
    ]
    if not names:
        raise ValueError(
            f"MODEL.COMPILE is True, but {type(model).__name__} has none of the parts that are "
            f"compiled: {', '.join(_PARTS)}, and reasoning modules; set it to False"
        )
    _check_compiler(cfg.MODEL.DEVICE)
    for name in names:
        modules[name].compile()
    logging.getLogger(__name__).info("Compiled in the first iterations: %s", ", ".join(names))
    return names


def uncompiled() -> AbstractContextManager:
    """A context in which compiled parts run as they are written.

    An evaluation would compile them anew: for its mode, for new sizes of images, for the regions
    that it records.
    """
    return torch.compiler.set_stance("force_eager")


def _check_compiler(device: str) -> None:
    """Compile a function of one line: what is missing on the machine shows at once."""
    # uncompiled() needs it.
    if not hasattr(torch.compiler, "set_stance"):
        raise ValueError(f"MODEL.COMPILE needs PyTorch 2.6 or newer, and not {torch.__version__}")
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"MODEL.COMPILE is True, but torch.compile does not work here: {type(error).__name__}: "
            f"{said}. On a CPU it needs a C++ compiler (g++, or the one that the variable CXX "
            "names) and Python's headers, on a GPU Triton; install them, or set MODEL.COMPILE to "
            "False"
        ) from error
