"""The set criterion: losses between matched queries and ground-truth masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.losses import dice_loss, mean_over_workers
from .matcher import HungarianMatcher, Match

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Criteria of mask classification, chosen by ``cfg.MODEL.MASK_FORMER.CRITERION_NAME``. A registered
class is called as ``(cfg, num_classes=...)``. Its modules have ``num_classes``, ``forward`` and
``weighted`` of :class:`SetCriterion`.
"""


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the sigmoid focal loss: mean over the cells, sum over the masks.

    Args:
        logits: (N, P).
        targets: (N, P), bool.
        alpha: weight of the cells inside a target; those outside weigh 1 - alpha.
        gamma: focusing exponent.
    """
    # The logit of the wrong answer: with it, one formula holds for both cases.
    wrong = torch.where(targets, -logits, logits)
    loss = F.softplus(wrong) * wrong.sigmoid() ** gamma
    return (loss * torch.where(targets, alpha, 1 - alpha)).mean(1).sum()


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Classification, focal and dice losses of every decoder layer (MaskFormer, Sec. 3.3).

    Each layer is matched separately. Queries without a target learn "no object". Only the others
    have mask losses. These are divided by the number of masks, averaged over the workers.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: dict[str, float],
        no_object_weight: float = 0.1,
    ):
        """
        Args:
            num_classes: classes, "no object" not counted.
            matcher: called with the predictions of all layers at once.
            weight_dict: weights of ``loss_ce``, ``loss_mask`` and ``loss_dice``, the same for every
                layer; for :meth:`weighted`.
            no_object_weight: weight of "no object" in the classification loss.
        """
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": HungarianMatcher(cfg),
            "weight_dict": {
                "loss_ce": options.CLASS_WEIGHT,
                "loss_mask": options.MASK_WEIGHT,
                "loss_dice": options.DICE_WEIGHT,
            },
            "no_object_weight": options.NO_OBJECT_WEIGHT,
        }

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """
        Args:
            outputs: of a predictor: ``pred_logits`` (B, Q, classes + 1), ``pred_masks``
                (B, Q, h, w) and perhaps ``aux_outputs``, a list of such dicts. The masks may be
                given by factors, too: ``mask_features`` (B, C, h, w) and in each dict
                ``mask_embeddings`` (B, Q, C).
            targets: per image a dict of ``labels`` (T_i,), int64, and ``masks`` (T_i, H, W), bool,
                of one size for the whole batch. T_i may be 0.

        Returns:
            Unweighted losses ``loss_ce``, ``loss_mask`` and ``loss_dice``. The losses of the i-th
            auxiliary output have the suffix ``_i``.
        """
        layers = [outputs, *outputs.get("aux_outputs", [])]
        device = outputs["pred_logits"].device
        matches = self.matcher(layers, targets)
        counts = [len(query) for query, _ in matches[0]]
        indices = self._to_device(matches, targets, device)
        labels = torch.cat([target["labels"] for target in targets])
        masks = [target["masks"].bool() for target in targets]
        # At least one for each process, as in the public MaskFormer.
        num_masks = mean_over_workers(len(labels), device).clamp_min(1)

        matched = self._matched_masks(outputs.get("mask_features"), layers, indices, counts)
        losses = {}
        with torch.autocast(device.type, enabled=False):
            matched = [layer.float() for layer in matched]
            of_masks = self._mask_losses(matched, masks, [target for *_, target in indices], counts)
            for number, (layer, (image, query, target), (loss_mask, loss_dice)) in enumerate(
                zip(layers, indices, of_masks)
            ):
                suffix = "" if number == 0 else f"_{number - 1}"
                losses[f"loss_ce{suffix}"] = self._class_loss(
                    layer["pred_logits"].float(), image, query, labels[target]
                )
                losses[f"loss_mask{suffix}"] = loss_mask / num_masks
                losses[f"loss_dice{suffix}"] = loss_dice / num_masks
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each loss of :meth:`forward` by its weight."""
        return {
            name: loss * self.weight_dict["_".join(name.split("_")[:2])]
            for name, loss in losses.items()
        }

    def _class_loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        classes = labels.new_full(logits.shape[:2], self.num_classes)
        classes[image, query] = labels
        return F.cross_entropy(logits.transpose(1, 2), classes, self.empty_weight.float())

    @staticmethod
    def _matched_masks(
        features: Tensor | None,
        layers: Sequence[dict[str, Tensor]],
        indices: Sequence[tuple[Tensor, Tensor, Tensor]],
        counts: Sequence[int],
    ) -> Sequence[Tensor]:
        """Give the (N, h, w) masks of the matched queries of each layer.

        With the features that masks are made of, the matched ones are made again. So the backward
        pass has no products with the gradients of all others, which are 0.
        """
        key = "pred_masks" if features is None else "mask_embeddings"
        matched = [layer[key][image, query] for layer, (image, query, _) in zip(layers, indices)]
        if features is None:
            return matched
        embeddings = torch.stack(matched)
        of_images = [
            torch.einsum("lnc,chw->lnhw", *each)
            for each in zip(embeddings.split(counts, dim=1), features)
        ]
        return torch.cat(of_images, dim=1).unbind()

    def _mask_losses(
        self,
        logits: Sequence[Tensor],
        masks: Sequence[Tensor],
        index: Sequence[Tensor],
        counts: Sequence[int],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sum the mask and dice losses of the pairs of each layer; see :meth:`read_pairs`."""
        if not any(counts):
            # Zeros that depend on the predictions: distributed training needs every parameter.
            yield from ((layer.sum(), layer.sum()) for layer in logits)
            return
        for values, targets in self.read_pairs(logits, masks, index, counts):
            prob = values.sigmoid()
            dice = dice_loss((prob * targets).sum(1), prob.sum(1), targets.sum(1))
            yield self.mask_loss(values, targets), dice.sum()

    def read_pairs(
        self,
        logits: Sequence[Tensor],
        masks: Sequence[Tensor],
        index: Sequence[Tensor],
        counts: Sequence[int],
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Read each matched pair of a prediction and a target at P places.

        Here these are all pixels.

        Args:
            logits: of each layer (N, h, w), float32, N at least 1; image by image.
            masks: of each image (T_i, H, W), bool.
            index: of each layer (N,), the target of each prediction, among all images' masks.
            counts: N_i of each image.

        Returns:
            For each layer the (N, P) logits and targets, made one after the other.
        """
        size = masks[0].shape[-2:]
        of_all_images = torch.cat(list(masks))
        for layer, target in zip(logits, index):
            resized = F.interpolate(layer[:, None], size, mode="bilinear", align_corners=False)
            yield resized.flatten(1), of_all_images[target].flatten(1)

    def mask_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mask loss of (N, P) pairs: mean over the places, sum over the pairs."""
        return sigmoid_focal_loss(logits, targets)

    @staticmethod
    def _to_device(
        matches: list[list[Match]], targets: Sequence[dict[str, Tensor]], device: torch.device
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Copy (N,) indices of image, query and target (among all images') per layer at once."""
        counts = [len(target["labels"]) for target in targets]
        offsets = np.cumsum([0, *counts[:-1]])
        rows = [
            np.concatenate(
                [
                    np.stack([np.full_like(query, image), query, target + offsets[image]])
                    for image, (query, target) in enumerate(layer)
                ],
                axis=1,
            )
            for layer in matches
        ]
        # Every layer has the same number of pairs, so they stack.
        stacked = torch.from_numpy(np.stack(rows)).to(device, non_blocking=True)
        return [tuple(layer) for layer in stacked]
