"""What the metrics of an evaluation are called, and which way they are better."""

from __future__ import annotations

import re

__all__ = ["higher_is_better", "metric_title"]

_TITLES = {
    "total_loss": "total loss",
    "sem_seg/mIoU": "mIoU (%)",
    "bbox/AP": "box AP (%)",
    "segm/AP": "mask AP (%)",
    "panoptic_seg/PQ": "PQ (%)",
    "tokens/S_C": "$S_C$ (lower is better)",
    "tokens/D_C": "$D_C$ (higher is better)",
    "tokens/S_I": "$S_I$ (lower is better)",
    "tokens/D_I": "$D_I$ (higher is better)",
}

# The last part of a name in metrics.json: semantic, instance and panoptic segmentation over all
# classes and of one class ("IoU-car"), then the tokens.
_HIGHER = re.compile(
    r"mIoU|fwIoU|mACC|pACC|(IoU|ACC|AP|PQ)-.+|AP(50|75|s|m|l)?|[PSR]Q(_th|_st)?|D_[CI](_active)?"
)
_LOWER = re.compile(r"S_[CI](_active)?")


def metric_title(metric: str) -> str:
    """A metric's title in a plot: it says which way is better of what few people know by heart.

    Args:
        metric: a name in metrics.json; of an unknown one it is the title.
    """
    return _TITLES.get(metric, metric)


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better, by the last part of its name.

    Args:
        metric: a name in metrics.json, such as "sem_seg/mIoU" or "queries/S_C".

    Raises:
        ValueError: for a name of which this is not known.
    """
    name = metric.rpartition("/")[2]
    if _HIGHER.fullmatch(name):
        return True
    if _LOWER.fullmatch(name):
        return False
    raise ValueError(
        f"unknown metric {metric!r}; known are those of evaluations, as metrics.json names them: "
        "sem_seg/mIoU, tokens/S_C, queries/D_C_active, bbox/AP50, segm/AP, panoptic_seg/PQ, ..."
    )
