"""From class and mask predictions to semantic, panoptic and instance segmentation.

The functions take the predictions of one image: ``class_logits`` (Q, C + 1), whose last class is
"no object", and ``mask_logits`` (Q, h, w) at any resolution. ``resize`` brings the masks to the
size (H, W) of the result. By default they have it already.

The Q masks never exist at full size. They are resized and used strip by strip. So only a few strips
and, for panoptic results, a map of the pixels' owners take memory beside the result. The literal
versions keep all masks: tools/benchmarks/mask_inference.py:literal_scores, literal_panoptic and
literal_instances.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from detectron2.structures import Boxes, Instances
from fvcore.common.registry import Registry
from torch import Tensor

from ..layers.strips import Strips

Resize = Callable[[Strips], Strips]

PANOPTIC_MERGE_REGISTRY = Registry("PANOPTIC_MERGE")
PANOPTIC_MERGE_REGISTRY.__doc__ = """
Rules of merging, chosen by ``cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_MERGE``: functions with the
arguments and the result of :func:`merge_by_pixel`, without ``within_masks``.
"""


def _as_they_are(masks: Strips) -> Strips:
    return masks


def semantic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    resize: Resize = _as_they_are,
    size: tuple[int, int] | None = None,
    labels: bool = False,
) -> Tensor:
    """Sum p(class) * p(pixel in mask) over the queries (MaskFormer, Sec. 3.4).

    Args:
        class_logits, mask_logits: predictions of one image.
        resize: (Q, h, w) masks -> (Q, H', W'), the masks that are summed.
        size: (H, W) of the result. The sum is resized to it bilinearly. None leaves (H', W').
        labels: give only the best class, which takes a C-th of the memory.

    Returns:
        (C, H, W) scores, or (H, W) int32 labels in [0, C).
    """
    prob = class_logits.softmax(-1)[:, :-1]
    scores = resize(Strips.of(mask_logits)).apply(
        lambda logits: torch.einsum("qc,qhw->chw", prob, logits.sigmoid()), channels=prob.shape[1]
    )
    if size is not None:
        scores = scores.resize(*size)
    if labels:
        return scores.argmax()
    result = prob.new_empty(scores.shape)
    for rows, strip in scores:
        result[:, rows] = strip
    return result


@PANOPTIC_MERGE_REGISTRY.register()
def merge_by_pixel(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_classes: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
    within_masks: bool = False,
    resize: Resize = _as_they_are,
) -> tuple[Tensor, list[dict]]:
    """MaskFormer's rule: a pixel goes to the query with the highest p(class) * p(pixel in mask).

    A pixel is in a query's mask if p(pixel in mask) is at least 0.5.

    Args:
        class_logits, mask_logits: predictions of one image.
        thing_classes: each query of these classes is a segment of its own. All queries of another
            class make one segment.
        score_threshold: a query takes part if its best class is not "no object" and has a
            probability above this.
        overlap_threshold: a query is dropped if it owns fewer pixels than this share of its mask.
        within_masks: leave a pixel empty if it is not in the mask of its owner. It counts as owned
            nevertheless.
        resize: (N, h, w) masks of some queries -> (N, H, W) masks of the result's size.

    Returns:
        (H, W) int32 map of segment ids, 0 where there is no segment, and a list of dicts ``id``,
        ``isthing``, ``category_id``, in the order of the ids (from 1).
    """
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = ((classes != class_logits.shape[-1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    num = len(kept)
    scores, classes = scores[kept], classes[kept]
    masks = resize(Strips.of(mask_logits).select(kept))
    if num == 0:
        return torch.zeros(masks.shape[1:], dtype=torch.int32, device=kept.device), []

    # The index of each pixel's owner, plus num if the pixel is not in the owner's mask.
    owner = torch.empty(masks.shape[1:], dtype=torch.int32, device=kept.device)
    mask_area = torch.zeros_like(classes)
    for rows, logits in masks:
        prob = logits.sigmoid()
        inside = prob >= 0.5
        best = (scores[:, None, None] * prob).max(0).indices
        owner[rows] = best + num * ~inside.gather(0, best[None])[0]
        mask_area += inside.flatten(1).sum(1)
    owned_inside, owned_outside = torch.bincount(owner.flatten(), minlength=2 * num).view(2, num)
    table = torch.stack([classes, owned_inside, owned_outside, mask_area], dim=1).tolist()

    ids: list[int] = []
    stuff_ids: dict[int, int] = {}
    segments: list[dict] = []
    for category, inside_area, outside_area, area in table:
        owned = inside_area + outside_area
        # A segment without a pixel in the map must not be listed.
        seen = inside_area if within_masks else owned
        # An id of 0 leaves the query's pixels empty.
        segment_id = 0
        if seen and area and owned / area >= overlap_threshold:
            segment_id = stuff_ids.get(category, len(segments) + 1)
            if segment_id > len(segments):
                is_thing = category in thing_classes
                if not is_thing:
                    stuff_ids[category] = segment_id
                segments.append({"id": segment_id, "isthing": is_thing, "category_id": category})
        ids.append(segment_id)
    ids += [0] * num if within_masks else ids
    id_of_owner = torch.tensor(ids, dtype=torch.int32, device=owner.device)
    return id_of_owner.index_select(0, owner.flatten()).view_as(owner), segments


@PANOPTIC_MERGE_REGISTRY.register()
def merge_by_pixel_within_masks(*predictions, **options) -> tuple[Tensor, list[dict]]:
    """Mask2Former's rule: :func:`merge_by_pixel` with ``within_masks``."""
    return merge_by_pixel(*predictions, within_masks=True, **options)


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    max_instances: int,
    thing_classes: Collection[int] | None = None,
    resize: Resize = _as_they_are,
) -> Instances:
    """Choose the best pairs of a query and a class. Only their masks are resized, each one once.

    Args:
        class_logits, mask_logits: predictions of one image.
        max_instances: largest number of pairs.
        thing_classes: classes that have instances; None means all. Only pairs with these classes
            are chosen. (The public Mask2Former chooses among all classes. With panoptic results it
            then drops the pairs that are no things. The result has the same pairs or fewer.)
        resize: (N, h, w) masks of some queries -> (N, H, W) masks of the result's size.

    Returns:
        Instances, sorted by class score, with ``pred_masks`` (N, H, W) bool, ``pred_boxes`` around
        the masks (all zeros for an empty mask), ``pred_classes`` (N,) and ``scores`` (N,). A score
        is the probability of the class times the mean probability inside the mask.
    """
    prob = class_logits.softmax(-1)[:, :-1]
    classes = torch.arange(prob.shape[1], device=prob.device)
    if thing_classes is not None:
        classes = torch.tensor(sorted(thing_classes), dtype=torch.int64, device=prob.device)
        prob = prob[:, classes]
    scores, pairs = prob.flatten().topk(min(max_instances, prob.numel()))
    queries = pairs.div(max(len(classes), 1), rounding_mode="floor")

    chosen, position = queries.unique(return_inverse=True)
    strips = resize(Strips.of(mask_logits).select(chosen))
    masks = torch.empty((len(pairs), *strips.shape[1:]), dtype=torch.bool, device=prob.device)
    area = torch.zeros_like(chosen)
    mass = prob.new_zeros(len(chosen))
    for rows, logits in strips:
        inside = logits > 0
        area += inside.flatten(1).sum(1)
        mass += (logits.sigmoid() * inside).flatten(1).sum(1)
        masks[:, rows] = inside[position]
    quality = mass / (area + 1e-6)

    result = Instances(strips.shape[1:])
    result.pred_masks = masks
    result.pred_boxes = Boxes(_boxes_around(masks))
    result.scores = scores * quality[position]
    result.pred_classes = classes[pairs - queries * len(classes)]
    return result


def _boxes_around(masks: Tensor) -> Tensor:
    """Make (N, 4) boxes x0, y0, x1, y1 around (N, H, W) masks; x1 and y1 are exclusive."""
    columns, rows = masks.any(1), masks.any(2)
    x0, x1 = _first_and_last(columns)
    y0, y1 = _first_and_last(rows)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * columns.any(1, keepdim=True)


def _first_and_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first True along the last axis, and the place behind the last True."""
    occupied = occupied.byte()
    return occupied.argmax(-1), occupied.shape[-1] - occupied.flip(-1).argmax(-1)
