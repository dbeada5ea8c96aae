"""What the metrics of an evaluation are called, and whether more of them is better."""

from __future__ import annotations

import re

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

# For tables of token metrics. The direction is an arrow at each name there.
TOKEN_METRICS = (
    "S is how mixed the labels under a token are (their entropy in nats), D how much the tokens of "
    "an image differ; C counts classes, I instances. Queries are the masks of a mask classifier, "
    "measured as if they were tokens."
)

# A project adds its own metrics here: the last part of a name in metrics.json -> whether higher is
# better.
HIGHER_IS_BETTER: dict[str, bool] = {}

# Semantic, instance and panoptic segmentation, over all classes and of one class ("IoU-car"), then
# the tokens.
_HIGHER = re.compile(
    r"mIoU|fwIoU|i?IoU(_sup)?|mACC|pACC|(IoU|ACC|AP|PQ)-.+|m?(BoundaryIoU|min\(IoU, B-Iou\))(-.+)?|"
    r"AP(50|75|s|m|l)?|[PSR]Q(_th|_st)?|D_[CI](_active)?"
)
_LOWER = re.compile(r"S_[CI](_active)?")


def metric_title(metric: str) -> str:
    """The title in a plot of a metric in metrics.json; its name if the metric is unknown.

    The titles of the token metrics say which way is better, because few people know it.
    """
    return _TITLES.get(metric, metric)


def higher_is_better(metric: str) -> bool | None:
    """Whether more of a metric is better; None if this is unknown.

    The last part of its name in metrics.json counts, such as mIoU of "sem_seg/mIoU".
    """
    name = metric.rpartition("/")[2]
    if name in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[name]
    if _HIGHER.fullmatch(name):
        return True
    return False if _LOWER.fullmatch(name) else None
