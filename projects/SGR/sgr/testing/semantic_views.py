"""What the models that look at an image several times share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..modeling.layers.strips import Strips
from ..modeling.outputs import Outputs, outputs_of


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of a DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def semantic_outputs_of(model: nn.Module) -> Outputs:
    """What a model declares to put out.

    Raises:
        ValueError: if it does not put out ``sem_seg`` alone, or that is switched off.
    """
    name = type(model).__name__
    outputs = outputs_of(model)
    if outputs is None or not outputs.sem_seg:
        raise ValueError(
            "multi-scale testing and sliding windows are for semantic segmentation, by a "
            f"SemanticSegmentor, MaskFormerSegmentor or subclass, and {name} is none; set "
            "TEST.AUG.ENABLED and TEST.SLIDING_WINDOW.ENABLED to False"
        )
    if not getattr(model, "semantic_on", True):
        raise ValueError(
            f"multi-scale testing and sliding windows need the semantic results of {name}: set "
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON to True, or TEST.AUG.ENABLED and "
            "TEST.SLIDING_WINDOW.ENABLED to False"
        )
    return outputs


def resizes_masks(model: nn.Module) -> bool:
    """Whether a mask classifier resizes its masks to the size of the result, not their sum."""
    outputs = outputs_of(model)
    return outputs is not None and bool(getattr(model, outputs.resizes_masks or "", False))


def to_output(scores: Tensor, size: tuple[int, int], semantic_output: str) -> Tensor:
    """(C, h, w) scores, resized bilinearly to ``size`` (H, W), or the best class of every pixel.

    Returns:
        (C, H, W) scores, the given ones where they have the size, or (H, W) int32 labels, for
        which no full-size scores are made.
    """
    if semantic_output == "scores":
        if tuple(scores.shape[-2:]) == size:
            return scores
        return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    return Strips.of(scores).resize(*size).argmax()
