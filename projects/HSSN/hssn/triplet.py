"""The tree-triplet loss: embeddings of pixels are arranged by the distances in the tree."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import get_norm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.data.class_tree import ClassTree
from sgr.modeling.layers.checks import check_at_least_one
from sgr.modeling.layers.losses import mean_over_workers
from sgr.modeling.per_pixel.losses import labels_of_cells
from sgr.modeling.supervision.side_criteria import (
    SIDE_CRITERION_REGISTRY,
    SideCriterion,
    check_inputs,
)

from .node_index import find_tree

LEAST_MARGIN = 0.1
PUBLIC = "decode_head.proj_head.proj."  # what the names of the public projection begin with


class TreeTripletLoss(nn.Module):
    """Triplets of pixels: an anchor, a pixel of a sibling class, and one of another superclass.

    For each class that has siblings in the batch, at most ``samples`` triplets are chosen: as many
    as there are anchors, positives and negatives. The loss of a triplet is the cosine distance to
    the positive minus that to the negative, plus a margin, if this is above 0. It is averaged over
    the triplets of a class. Ignored pixels are in no triplet.

    For N pixels and K samples it needs 3 C N + 3 C K D numbers, and its sizes depend on no value,
    so nothing waits for a GPU.

    Args:
        tree: the tree.
        samples: K.
        margin: of all triplets; below 0 for 0.1 plus a quarter of the difference of the two
            distances in the tree, divided by its height.
        shuffle: choose pixels at random; otherwise the first ones of the batch, as the public code.
    """

    superclasses: Tensor
    margins: Tensor

    def __init__(
        self, tree: ClassTree, *, samples: int = 200, margin: float = -1.0, shuffle: bool = True
    ):
        super().__init__()
        check_at_least_one("samples (MODEL.HSSN.TRIPLET_SAMPLES)", samples)
        self.samples = samples
        self.margin = margin
        self.shuffle = shuffle
        superclasses = tree.groups[min(1, len(tree.sizes) - 1)]
        self.register_buffer("superclasses", torch.from_numpy(superclasses), persistent=False)
        # psi / (4 D) of two classes: half of what a distance adds to the margin, m_tau / 2.
        margins = torch.from_numpy(tree.distances).float() / (4 * tree.height)
        self.register_buffer("margins", margins, persistent=False)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ignore_value: int = 255
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            embeddings: (N, D) of length 1.
            labels: (N,) int64 classes or ``ignore_value``.

        Returns:
            The sum over the classes of their mean losses, and the number of classes with triplets.
        """
        classes = torch.arange(len(self.superclasses), device=labels.device)
        is_labelled = labels != ignore_value
        safe = labels.where(is_labelled, 0)
        is_anchor = (safe == classes[:, None]) & is_labelled
        is_relative = (self.superclasses[safe] == self.superclasses[:, None]) & is_labelled
        roles = (is_anchor, is_relative & ~is_anchor, is_labelled & ~is_relative)
        numbers = torch.stack([role.sum(dim=1) for role in roles]).amin(dim=0)
        numbers = numbers.clamp_max(self.samples)

        count = len(labels)
        keys = torch.rand(count, device=labels.device)
        if not self.shuffle:
            keys = -torch.arange(count, device=labels.device, dtype=torch.float32)
        chosen = [
            keys.where(role, -torch.inf).topk(min(self.samples, count), dim=1).indices
            for role in roles
        ]
        anchors, positives, negatives = (embeddings[places] for places in chosen)
        difference = (anchors * (negatives - positives)).sum(dim=-1)
        losses = (difference + self._margins(safe[chosen[1]], safe[chosen[2]])).clamp_min(0)
        is_taken = torch.arange(losses.shape[1], device=labels.device) < numbers[:, None]
        means = losses.where(is_taken, 0).sum(dim=1) / numbers.clamp_min(1)
        return means.sum(), (numbers > 0).sum()

    def _margins(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """(C, K) margins of triplets with anchors of class 0, 1... and these other classes."""
        if self.margin >= 0:
            return torch.full_like(positives, self.margin, dtype=torch.float32)
        to_negative = self.margins.gather(1, negatives)
        return LEAST_MARGIN + to_negative - self.margins.gather(1, positives)


def rising_weight(iteration: int, total: int) -> float:
    """0 at the start, 1 from ``total`` on, along a cosine between them."""
    if iteration >= total:
        return 1.0
    return (1 + math.cos(math.pi * (iteration - total) / total)) / 2


@SIDE_CRITERION_REGISTRY.register()
class TreeTripletSupervision(SideCriterion):
    """``loss_tree_triplet``: the tree-triplet loss of a projection of a feature of the backbone.

    It goes with any meta-architecture that has a backbone, and inputs with labels ``sem_seg``. The
    projection (1x1 convolution, norm, ReLU, 1x1 convolution) is part of the criterion, so it does
    not run after the training.

    The mean is over the classes that have triplets, whose number is averaged over the workers.

    Args:
        tree: the tree.
        feature: name of the backbone's feature.
        channels: of the feature.
        stride: of the feature, pixels.
        embedding_dim: channels of an embedding.
        norm: of the projection, see Detectron2's ``get_norm``.
        weight: of the loss at the end of the training.
        max_iter: the iteration from which the weight does not rise any more. Outside of a trainer
            the weight is the last one.
        samples, margin: see :class:`TreeTripletLoss`.
        ignore_value: label of pixels in no triplet.
    """

    recorded_modules = ("backbone",)

    def __init__(
        self,
        tree: ClassTree,
        feature: str,
        *,
        channels: int,
        stride: int,
        embedding_dim: int = 256,
        norm: str = "SyncBN",
        weight: float = 0.5,
        max_iter: int = 80000,
        samples: int = 200,
        margin: float = -1.0,
        ignore_value: int = 255,
    ):
        super().__init__()
        check_at_least_one("embedding_dim (MODEL.HSSN.PROJECTION_DIM)", embedding_dim)
        self.feature = feature
        self.stride = stride
        self.weight = weight
        self.max_iter = max_iter
        self.ignore_value = ignore_value
        self.loss = TreeTripletLoss(tree, samples=samples, margin=margin)
        self.projection = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            get_norm(norm, channels) or nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(channels, embedding_dim, 1),
        )

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> TreeTripletSupervision | None:
        """Build it from ``cfg.MODEL.HSSN``.

        Returns:
            None if TRIPLET_WEIGHT is 0, or no class has a sibling. The log warns of the latter.

        Raises:
            ValueError: the model has no backbone, or its backbone no such feature; see also
                :func:`find_tree`.
        """
        keys = cfg.MODEL.HSSN
        if keys.TRIPLET_WEIGHT == 0:
            return None
        tree = find_tree(cfg)
        if len(tree.sizes) < 2 or tree.sizes[1] in (1, tree.num_classes):
            logging.getLogger(__name__).warning(
                "No tree-triplet loss: in the tree of the classes, there are no two classes of one "
                "superclass beside another superclass"
            )
            return None
        backbone: Any = getattr(model, "backbone", None)
        if not hasattr(backbone, "output_shape"):
            raise ValueError(
                f"MODEL.SIDE_CRITERIA has {cls.__name__}, but {type(model).__name__} has no "
                "backbone; set MODEL.HSSN.TRIPLET_WEIGHT 0.0"
            )
        shapes = backbone.output_shape()
        # A backbone may put out more than features, for example SeMask's semantic maps. The head
        # reads only features.
        read = [name for name in shapes if name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES]
        # Of features with the same stride, the last one: stages may be dilated.
        coarsest = max(reversed(read or list(shapes)), key=lambda name: shapes[name].stride)
        feature = keys.TRIPLET_IN_FEATURE or coarsest
        if feature not in shapes:
            raise ValueError(
                f"MODEL.HSSN.TRIPLET_IN_FEATURE is {feature!r}, but the backbone gives "
                f"{', '.join(shapes)}"
            )
        return cls(
            tree,
            feature,
            channels=shapes[feature].channels,
            stride=shapes[feature].stride,
            embedding_dim=keys.PROJECTION_DIM,
            norm=cfg.MODEL.SEM_SEG_HEAD.NORM,
            weight=keys.TRIPLET_WEIGHT,
            max_iter=cfg.SOLVER.MAX_ITER,
            samples=keys.TRIPLET_SAMPLES,
            margin=keys.TRIPLET_MARGIN,
            ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        )

    def forward(
        self,
        model: nn.Module,
        record: Mapping[str, Any],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """See :class:`SideCriterion`; an input without labels raises a ValueError."""
        check_inputs(
            batched_inputs,
            "sem_seg",
            "labels 'sem_seg', which triplets are chosen by; train with a mapper of label maps "
            "(INPUT.DATASET_MAPPER_NAME), or set MODEL.HSSN.TRIPLET_WEIGHT 0.0",
        )
        embeddings = self.projection(record["backbone"][self.feature]).float()
        labels = [
            labels_of_cells(image["sem_seg"][None], embeddings, self.stride, self.ignore_value).to(
                embeddings.device, non_blocking=True
            )
            for image in batched_inputs
        ]
        with torch.autocast(embeddings.device.type, enabled=False):
            cells = F.normalize(embeddings, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
            total, number = self.loss(cells, torch.cat(labels).flatten(), self.ignore_value)
            mean = total / mean_over_workers(number, total.device)
        return {"loss_tree_triplet": self.weight * self._schedule() * mean}

    def _schedule(self) -> float:
        try:
            return rising_weight(get_event_storage().iter, self.max_iter)
        except AssertionError:  # outside of a trainer there is no storage
            return 1.0

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the projection of a public file.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it.
        """
        return {
            f"{prefix}projection.{name.removeprefix(PUBLIC)}": value
            for name, value in state.items()
            if name.startswith(PUBLIC)
        }
