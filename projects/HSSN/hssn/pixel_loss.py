"""The loss of per-pixel heads whose logits are those of the nodes of a tree."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from sgr.data.class_tree import ClassTree
from sgr.modeling.layers.losses import mean_over_workers
from sgr.modeling.per_pixel import PIXEL_LOSS_REGISTRY, PixelLoss
from sgr.modeling.per_pixel.losses import upsample_to_labels

from .losses import LOSSES, level_cross_entropies, mean_of_levels, node_losses
from .node_index import NodeIndex, find_tree
from .region_mutual_information import region_mutual_information

PATH_SCORES = ("logits", "scores")


class TreeLoss(PixelLoss):
    """Losses of the logits of all nodes; inference by the best path from a root to a class.

    The losses are ``loss_tree`` (see :func:`node_losses`), the cross entropies of the levels
    (``loss_sem_seg``, ``loss_sem_seg_level2``, ...) and ``loss_tree_rmi``. One with weight 0 is
    left out. They are means over the labelled pixels, whose number is averaged over the workers.
    The auxiliary classifier learns the cross entropy of the classes only.

    At its peak, in the backward pass, it holds about five float32 arrays of B V H W numbers, with
    "focal_tree_min" eight.

    Args:
        num_classes, in_channels, ignore_value: see :class:`PixelLoss`.
        tree: of these classes.
        loss: see :func:`node_losses`.
        weight: of ``loss_tree``.
        gamma: see :func:`node_losses`.
        ce_weight: of the cross entropy of each level.
        rmi_weight: of ``loss_tree_rmi``.
        path_score: see :meth:`NodeIndex.path_scores`.

    Raises:
        ValueError: ``loss`` or ``path_score`` is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        tree: ClassTree,
        loss: str = "tree_min",
        weight: float = 5.0,
        gamma: float = 2.0,
        ce_weight: float = 1.0,
        rmi_weight: float = 0.0,
        path_score: str = "logits",
        **options: Any,
    ):
        super().__init__(num_classes, **options)
        for key, value, known in (
            ("LOSS", loss, LOSSES),
            ("PATH_SCORE", path_score, PATH_SCORES),
        ):
            if value not in known:
                raise ValueError(f"MODEL.HSSN.{key} is {value!r}; it is one of {', '.join(known)}")
        for key, number in (
            ("WEIGHT", weight),
            ("GAMMA", gamma),
            ("CE_WEIGHT", ce_weight),
            ("RMI_WEIGHT", rmi_weight),
        ):
            if not number >= 0:
                raise ValueError(f"MODEL.HSSN.{key} is {number}; it must be at least 0")
        self.index = NodeIndex(tree)
        self.num_outputs = self.index.num_nodes
        self.levels = tree.sizes
        self.num_aux_outputs = num_classes
        self.node_loss = loss
        self.weight, self.gamma = weight, gamma
        self.ce_weight, self.rmi_weight = ce_weight, rmi_weight
        self.path_score = path_score

    def forward(
        self, logits: Tensor, labels: Tensor, stride: int, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`PixelLoss.forward`.

        Raises:
            ValueError: a label is no class and not ignored. On a GPU this is an error of CUDA.
        """
        self._check(labels)
        with torch.autocast(logits.device.type, enabled=False):
            logits = upsample_to_labels(logits.float(), labels, stride)
            is_labelled = labels != self.ignore_value
            counted = mean_over_workers(is_labelled.sum(), logits.device)
            if features is None:
                total = F.cross_entropy(
                    logits, labels, ignore_index=self.ignore_value, reduction="sum"
                )
                return {"loss_sem_seg": total / counted}
            return self._losses(logits, labels, is_labelled, counted)

    def _losses(
        self, logits: Tensor, labels: Tensor, is_labelled: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        losses = {}
        classes = labels.where(is_labelled, 0)
        if self.weight:
            sums = node_losses(logits, classes, self.index, loss=self.node_loss, gamma=self.gamma)
            losses["loss_tree"] = self.weight * mean_of_levels(
                sums, is_labelled, counted, self.index
            )
        if self.ce_weight:
            totals = level_cross_entropies(logits, labels, self.index, self.ignore_value)
            for level, total in enumerate(totals, 1):
                name = "loss_sem_seg" if level == 1 else f"loss_sem_seg_level{level}"
                losses[name] = self.ce_weight * total / counted
        if self.rmi_weight:
            losses["loss_tree_rmi"] = self.rmi_weight * self._rmi(logits, classes, is_labelled)
        return losses

    def _rmi(self, logits: Tensor, classes: Tensor, is_labelled: Tensor) -> Tensor:
        nodes = self.index.ancestors[:, classes].transpose(0, 1)  # (B, levels, H, W)
        targets = torch.zeros_like(logits).scatter(1, nodes, 1)
        values = region_mutual_information(logits, targets, is_labelled)
        images = mean_over_workers(is_labelled.flatten(1).any(1).sum(), logits.device)
        return (0.5 * values.sum() / images).float()

    def _check(self, labels: Tensor) -> None:
        if not labels.is_cpu:
            return
        known = (labels >= 0) & (labels < self.index.tree.num_classes)
        strays = labels[~known & (labels != self.ignore_value)]
        if len(strays):
            raise ValueError(
                f"the labels have {int(strays[0])}, which is no class (0 to "
                f"{self.index.tree.num_classes - 1}) and not the ignored {self.ignore_value}"
            )

    def class_logits(self, logits: Tensor) -> Tensor:
        """The path score of each class, see :meth:`NodeIndex.path_scores`.

        Of "scores", the logarithm, so that a softmax gives the score of a class divided by the sum
        over all classes.
        """
        total = self.index.path_scores(logits, self.path_score)
        if self.path_score == "scores":
            return total.clamp_min(torch.finfo(total.dtype).tiny).log()
        return total

    def level_labels(self, labels: Tensor) -> Tensor:
        """The nodes on the path of each cell's class, see :meth:`PixelLoss.level_labels`.

        Raises:
            ValueError: as :meth:`forward`.
        """
        self._check(labels)
        is_labelled = labels != self.ignore_value
        return self.index.ancestors[:, labels.where(is_labelled, 0)].where(is_labelled, -1)


@PIXEL_LOSS_REGISTRY.register()
def hssn(cfg: CfgNode, num_classes: int, **options: Any) -> TreeLoss:
    keys = cfg.MODEL.HSSN
    return TreeLoss(
        num_classes,
        tree=find_tree(cfg),
        loss=keys.LOSS,
        weight=keys.WEIGHT,
        gamma=keys.GAMMA,
        ce_weight=keys.CE_WEIGHT,
        rmi_weight=keys.RMI_WEIGHT,
        path_score=keys.PATH_SCORE,
        **options,
    )
