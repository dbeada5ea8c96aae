"""From class and mask predictions to semantic, panoptic and instance segmentation.

The functions take one image: ``class_logits`` (Q, C + 1), whose last class is "no object", and
``mask_logits`` (Q, H, W).
"""

from __future__ import annotations

from typing import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["instance_inference", "panoptic_inference", "semantic_inference"]


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """(C, H, W) scores: the sum over the queries of p(class) * p(pixel in mask)."""
    prob = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", prob, mask_logits.sigmoid())


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_classes: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict]]:
    """Give every pixel to the query with the highest p(class) * p(pixel in mask).

    Args:
        class_logits, mask_logits: predictions of one image.
        thing_classes: classes whose queries are segments of their own; those of other classes
            merge into one segment per class.
        score_threshold: queries take part if the probability of their best class is above this and
            that class is not "no object".
        overlap_threshold: a segment is dropped if less than this share of its mask (probability at
            least 0.5) is left to it.

    Returns:
        (H, W) int32 map of segment ids, 0 where there is none, and a list of dicts ``id``,
        ``isthing``, ``category_id``, in the order of the ids (from 1).
    """
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = ((classes != class_logits.shape[-1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    if len(kept) == 0:
        return torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=kept.device), []

    prob = mask_logits[kept].sigmoid()
    owner = (scores[kept, None, None] * prob).argmax(0)
    owned = torch.bincount(owner.flatten(), minlength=len(kept))
    original = (prob >= 0.5).flatten(1).sum(1)
    table = torch.stack([classes[kept], owned, original], dim=1).tolist()

    ids, stuff_ids, segments = [], {}, []
    for category, owned_area, original_area in table:
        # An id of 0 leaves the query's pixels empty.
        segment_id = 0
        if owned_area and original_area and owned_area >= overlap_threshold * original_area:
            segment_id = stuff_ids.get(category, len(segments) + 1)
            if segment_id > len(segments):
                is_thing = category in thing_classes
                if not is_thing:
                    stuff_ids[category] = segment_id
                segments.append(
                    {"id": segment_id, "isthing": is_thing, "category_id": category}
                )
        ids.append(segment_id)
    return torch.tensor(ids, dtype=torch.int32, device=owner.device)[owner], segments


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    max_instances: int,
    thing_classes: Collection[int] | None = None,
) -> Instances:
    """The best pairs of a query and a class.

    Args:
        class_logits, mask_logits: predictions of one image.
        max_instances: pairs returned at most.
        thing_classes: classes that have instances; None means all.

    Returns:
        Instances, sorted by class score, with ``pred_masks`` (N, H, W) bool, ``pred_boxes`` around
        the masks (all zeros for an empty mask), ``pred_classes`` (N,) and ``scores`` (N,): the
        probability of the class times the mean probability inside the mask.
    """
    prob = class_logits.softmax(-1)[:, :-1]
    classes = torch.arange(prob.shape[1], device=prob.device)
    if thing_classes is not None:
        classes = torch.tensor(sorted(thing_classes), dtype=torch.int64, device=prob.device)
        prob = prob[:, classes]
    scores, pairs = prob.flatten().topk(min(max_instances, prob.numel()))
    queries = pairs.div(max(len(classes), 1), rounding_mode="floor")

    logits = mask_logits[queries]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1)
    quality = inside / (masks.flatten(1).sum(1) + 1e-6)

    result = Instances(tuple(mask_logits.shape[-2:]))
    result.pred_masks = masks
    result.pred_boxes = Boxes(_boxes_around(masks))
    result.scores = scores * quality
    result.pred_classes = classes[pairs - queries * len(classes)]
    return result


def _boxes_around(masks: Tensor) -> Tensor:
    """(N, 4) boxes x0, y0, x1, y1 around (N, H, W) masks, the last two exclusive."""
    columns, rows = masks.any(1), masks.any(2)
    x0, x1 = _first_and_last(columns)
    y0, y1 = _first_and_last(rows)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * columns.any(1, keepdim=True)


def _first_and_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Along the last axis, the index of the first True and one past the last True."""
    occupied = occupied.byte()
    return occupied.argmax(-1), occupied.shape[-1] - occupied.flip(-1).argmax(-1)
