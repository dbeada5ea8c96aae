"""Hungarian matching between predicted and ground-truth masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.losses import dice_loss, focal_terms, matching_costs

Match = tuple[np.ndarray, np.ndarray]


def pairwise_focal_cost(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the mean sigmoid focal loss of every prediction with every target.

    Args:
        logits: (..., Q, P) predictions over P cells.
        targets: (..., T, P) 0 or 1.
        alpha: weight of the cells inside a target; those outside weigh 1 - alpha.
        gamma: focusing exponent.

    Returns:
        (..., Q, T).
    """
    inside, outside = focal_terms(F.logsigmoid(logits), F.logsigmoid(-logits), alpha, gamma)
    # The sum over inside * t + outside * (1 - t), with one product instead of two.
    total = (targets @ (inside - outside).mT).mT + outside.sum(-1, keepdim=True)
    return total / logits.shape[-1]


def pairwise_dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the dice loss 1 - (2 |A B| + 1) / (|A| + |B| + 1) of all predictions and targets.

    Args:
        logits: (..., Q, P) predictions over P cells.
        targets: (..., T, P) 0 or 1.

    Returns:
        (..., Q, T).
    """
    prob = logits.sigmoid()
    return dice_loss(
        (targets @ prob.mT).mT, prob.sum(-1)[..., :, None], targets.sum(-1)[..., None, :]
    )


class HungarianMatcher(nn.Module):
    """Match ground-truth masks with queries, one to one, so that the total cost is minimal.

    The cost of a pair is ``-class_weight * p(class) + mask_weight * focal + dice_weight * dice``.
    Targets are resized to the cells of the predictions.

    Args:
        class_weight, mask_weight, dice_weight: weights of the terms; at least one is not zero.

    Raises:
        ValueError: all weights are zero.
    """

    @configurable
    def __init__(
        self, *, class_weight: float = 1.0, mask_weight: float = 20.0, dice_weight: float = 1.0
    ):
        super().__init__()
        if class_weight == 0 and mask_weight == 0 and dice_weight == 0:
            raise ValueError(
                "all weights of the matching cost are 0, so all matchings are equal; set one of "
                "class_weight, mask_weight and dice_weight (CLASS_WEIGHT and so on of "
                "MODEL.MASK_FORMER)"
            )
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            "class_weight": options.CLASS_WEIGHT,
            "mask_weight": options.MASK_WEIGHT,
            "dice_weight": options.DICE_WEIGHT,
        }

    @torch.no_grad()
    def forward(
        self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]
    ) -> list[list[Match]]:
        """Match several sets of predictions (decoder layers) of one batch.

        All costs are copied to the host at once.

        Args:
            predictions: dicts of ``pred_logits`` (B, Q, classes + 1) and ``pred_masks``
                (B, Q, h, w), all of the same shapes.
            targets: per image a dict of ``labels`` (T_i,) and ``masks`` (T_i, H, W). An image may
                have no mask (T_i = 0) or more masks than there are queries.

        Returns:
            For every set of predictions and every image: the indices of the matched queries, in
            ascending order, and of their targets, min(Q, T_i) of each.
        """
        counts = [len(target["labels"]) for target in targets]
        if not any(counts):
            nothing = np.zeros(0, dtype=np.int64)
            return [[(nothing, nothing) for _ in counts] for _ in predictions]

        with torch.autocast(predictions[0]["pred_logits"].device.type, enabled=False):
            costs = torch.cat(
                [
                    self._image_costs(predictions, image, target)
                    for image, target in enumerate(targets)
                ],
                dim=2,
            )
        borders = np.cumsum(counts)[:-1]
        return [
            [linear_sum_assignment(cost) for cost in np.split(layer, borders, axis=1)]
            for layer in matching_costs(costs)
        ]

    def read_all(self, logits: Sequence[Tensor], masks: Tensor) -> tuple[Iterable[Tensor], Tensor]:
        """Read all masks of an image at P places, the same for all of them.

        Here these are the cells of the predictions.

        Args:
            logits: of each layer (Q, h, w), float32.
            masks: (T, H, W), bool; T may be 0.

        Returns:
            (Q, P) logits of each layer, made one after the other, and (T, P) targets in [0, 1].
        """
        targets = _resize(masks, logits[0].shape[-2:])
        return (layer.flatten(1) for layer in logits), targets.flatten(1).float()

    def mask_cost(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Compute the (Q, T) mask term of the cost from the result of :meth:`read_all`."""
        return pairwise_focal_cost(logits, masks)

    def _image_costs(
        self, predictions: Sequence[dict[str, Tensor]], image: int, target: dict[str, Tensor]
    ) -> Tensor:
        """Compute the (L, Q, T) costs of all pairs of an image, layer by layer."""
        logits, masks = self.read_all(
            [layer["pred_masks"][image].float() for layer in predictions], target["masks"].bool()
        )
        return torch.stack(
            [
                -self.class_weight
                * layer["pred_logits"][image].float().softmax(-1)[:, target["labels"]]
                + self.mask_weight * self.mask_cost(layer_logits, masks)
                + self.dice_weight * pairwise_dice_cost(layer_logits, masks)
                for layer, layer_logits in zip(predictions, logits)
            ]
        )


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (T, H, W) masks to (T, h, w) bytes, which take a quarter of the memory of floats."""
    if len(masks) == 0:
        return masks.new_zeros(0, *size, dtype=torch.uint8)
    return F.interpolate(masks[None].to(torch.uint8), size=size, mode="nearest")[0]
