"""A classifier whose classes are prototypes: running means of groups of their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sgr.modeling.layers.checks import check_at_least_one
from sgr.modeling.per_pixel.classifiers import PIXEL_CLASSIFIER_REGISTRY
from sgr.modeling.reasoning import ConceptRegions

from .clustering import equal_shares
from .workers import sum_over_workers

ASSIGNMENTS = ("argmax", "gumbel")
PROJECTION_NORMS = ("", "width")
# How many cosines of cells and prototypes are held at a time: 64 MiB.
MAX_COSINES = 2**24
# The sigmoid of these is 1 and 0 in float32.
INSIDE, OUTSIDE = 127, -127


class PrototypePrediction(NamedTuple):
    """What the classifier puts out, see :class:`sgr.modeling.per_pixel.PixelPrediction`.

    Attributes:
        logits: (B, K, h, w).
        losses: the weighted losses, in training.
        prototypes: (B, h, w) int64, k M + m for the prototype m that is nearest among those of the
            class k with the best logit. In a tree of classes the best path may have another class.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    prototypes: Tensor


class ProjectionHead(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution. The parameters have the public names.

    Args:
        channels: D, of input and output.
        norm: see MODEL.PROTOSEG.PROJECTION_NORM.
    """

    def __init__(self, channels: int, norm: str = ""):
        super().__init__()
        if norm not in PROJECTION_NORMS:
            known = ", ".join(map(repr, PROJECTION_NORMS))
            raise ValueError(f"MODEL.PROTOSEG.PROJECTION_NORM is {norm!r}; known: {known}")
        self.norm = norm
        self.proj = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        projected = self.proj(features)
        return F.normalize(projected, dim=3) if self.norm == "width" else projected


@PIXEL_CLASSIFIER_REGISTRY.register()
class PrototypeClassifier(nn.Module):
    """The logit of a class is the largest cosine between a cell and the class's M prototypes.

    From "Rethinking Semantic Segmentation: A Prototype View" (Zhou et al., CVPR 2022). Features
    are projected, normalised over channels and scaled to unit length. A layer norm over the classes
    gives the cosines a scale. Prototypes are not learned by gradients: in training, each is moved
    towards the mean of the cells that the clustering gives it (:func:`equal_shares`), and that the
    logits classify right. Two losses shape the features:

    * ``loss_prototype_contrast``: cross entropy over the cosines with all K M prototypes; right is
      the one that the cell is given to.
    * ``loss_prototype_distance``: the mean of ``(1 - cosine)^2`` of the two.

    Both are divided by the number of labelled cells, averaged over the workers. Without any, they
    are 0, with gradients of 0.

    The prototypes are a buffer, so they are in checkpoints and exported models. Clustering and
    moves count the cells of all workers, so the result does not depend on how a batch is divided.
    A step with a feature that is not finite in a labelled cell moves nothing.

    **Trees.** If the loss is one of a tree of classes, each node has prototypes. Each level of the
    tree learns as described, from its own nodes, and losses of the levels are added.

    **Regions.** Each prototype of a class is one: the cells of its class that it is nearest to.
    Nothing supervises these regions. They take ``B K M h w`` bytes.

    Args:
        in_channels: D.
        num_outputs: K.
        stride: pixels per cell.
        num_prototypes: M.
        momentum: gamma, what stays of a prototype in a step.
        epsilon: what divides the cosines in the clustering.
        iterations: of the clustering.
        assignment: "argmax" or "gumbel", see MODEL.PROTOSEG.ASSIGNMENT.
        contrast_weight, distance_weight: of the losses.
        temperature: what divides the cosines in the contrast.
        projection_norm: "" or "width", see MODEL.PROTOSEG.PROJECTION_NORM.

    Attributes:
        levels: the numbers of nodes of a tree's levels, from the classes upwards; () for no tree.

    Raises:
        ValueError: an option is out of range; the message names its key.

    Cost: ``D h w (2 D + K M)`` multiply-adds per image, the latter a second time in the backward
    pass where the cosines of a batch are more than ``MAX_COSINES``. At its peak, training holds
    about five arrays of so many float32. Everything behind the projection is float32 under
    autocast.
    """

    supervised_concepts = False
    levels: Sequence[int] = ()

    @configurable
    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        *,
        stride: int | None = None,
        num_prototypes: int = 10,
        momentum: float = 0.999,
        epsilon: float = 0.05,
        iterations: int = 3,
        assignment: str = "argmax",
        contrast_weight: float = 0.01,
        distance_weight: float = 0.001,
        temperature: float = 1.0,
        projection_norm: str = "",
    ):
        super().__init__()
        check_at_least_one("num_prototypes (MODEL.PROTOSEG.NUM_PROTOTYPES)", num_prototypes)
        check_at_least_one("iterations (MODEL.PROTOSEG.SINKHORN_ITERATIONS)", iterations)
        _check(0 <= momentum < 1, "MOMENTUM", momentum, "at least 0 and below 1")
        _check(epsilon > 0, "SINKHORN_EPSILON", epsilon, "above 0")
        _check(temperature > 0, "TEMPERATURE", temperature, "above 0")
        _check(contrast_weight >= 0, "CONTRAST_WEIGHT", contrast_weight, "at least 0")
        _check(distance_weight >= 0, "DISTANCE_WEIGHT", distance_weight, "at least 0")
        known = " or ".join(map(repr, ASSIGNMENTS))
        _check(assignment in ASSIGNMENTS, "ASSIGNMENT", assignment, known)
        self.stride = stride
        self.momentum = momentum
        self.epsilon = epsilon
        self.iterations = iterations
        self.assignment = assignment
        self.contrast_weight = contrast_weight
        self.distance_weight = distance_weight
        self.temperature = temperature

        self.proj_head = ProjectionHead(in_channels, projection_norm)
        self.feat_norm = nn.LayerNorm(in_channels)
        self.mask_norm = nn.LayerNorm(num_outputs)
        # Always the same numbers: workers must start alike, each has a seed of its own, and
        # Detectron2 does not let PyTorch share buffers.
        start = nn.init.trunc_normal_(
            torch.empty(num_outputs, num_prototypes, in_channels, device="cpu"),
            std=0.02,
            generator=torch.Generator().manual_seed(0),
        )
        self.register_buffer("prototypes", F.normalize(start, dim=2))

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, num_outputs: int, *, stride: int | None = None
    ) -> dict[str, Any]:
        options = cfg.MODEL.PROTOSEG
        return {
            "in_channels": in_channels,
            "num_outputs": num_outputs,
            "stride": stride,
            "num_prototypes": options.NUM_PROTOTYPES,
            "momentum": options.MOMENTUM,
            "epsilon": options.SINKHORN_EPSILON,
            "iterations": options.SINKHORN_ITERATIONS,
            "assignment": options.ASSIGNMENT,
            "contrast_weight": options.CONTRAST_WEIGHT,
            "distance_weight": options.DISTANCE_WEIGHT,
            "temperature": options.TEMPERATURE,
            "projection_norm": options.PROJECTION_NORM,
        }

    def forward(self, features: Tensor, labels: Tensor | None = None) -> PrototypePrediction:
        """
        Args:
            features: (B, D, h, w).
            labels: (B, h, w) int64 classes of the cells; in training only. Those outside of [0, K)
                are ignored. With ``levels``, (levels, B, h, w).
        """
        projected = self.proj_head(features)
        with torch.autocast(features.device.type, enabled=False):
            embedded = self.feat_norm(projected.float().permute(0, 2, 3, 1))
            embedded = F.normalize(embedded, dim=3).flatten(1, 2)
            # It may be a checkpoint's whose prototypes have other lengths than 1. As a copy it is
            # not changed by the move below.
            prototypes = F.normalize(self.prototypes, dim=2)
            if labels is None:
                scores, nearest = self._score(embedded, prototypes)
                losses: dict[str, Tensor] = {}
            else:
                if labels.dim() == 3:
                    labels = labels[None]
                scores, nearest, losses = self._learn(embedded, prototypes, labels.flatten(2))
            classes = scores[..., : self._sizes[0]].argmax(dim=2, keepdim=True)
            chosen = classes * prototypes.shape[1] + nearest.gather(2, classes)
            size = features.shape[-2:]
            return PrototypePrediction(
                scores.mT.unflatten(2, size), losses, chosen[..., 0].unflatten(1, size)
            )

    @property
    def _sizes(self) -> Sequence[int]:
        """The number of outputs of each level."""
        return self.levels or (len(self.prototypes),)

    def concept_regions(self, prediction: PrototypePrediction) -> ConceptRegions:
        """One region for each of the K M prototypes of classes, those of class 0 first."""
        number = self._sizes[0] * self.prototypes.shape[1]
        batch, height, width = prediction.prototypes.shape
        logits = prediction.logits.new_full(
            (batch, number, height, width), OUTSIDE, dtype=torch.int8
        )
        logits.scatter_(1, prediction.prototypes[:, None], INSIDE)
        return ConceptRegions(logits, stride=self.stride)

    def _score(self, embedded: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of (B, N, D) cells, and the nearest prototype of each class: both (B, N, K)."""
        # For each image, whose number of cells is known in export, too.
        parts = [
            (embedded @ part.flatten(0, 1).mT).unflatten(2, part.shape[:2]).max(dim=3)
            for part in _split(prototypes, embedded.shape[1])
        ]
        best, nearest = (torch.cat(each, dim=2) for each in zip(*parts))
        return self.mask_norm(best), nearest

    def _learn(
        self, embedded: Tensor, prototypes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As :meth:`_score`, with the losses; it moves the prototypes.

        Args:
            embedded: (B, N, D) cells of unit length.
            prototypes: (K, M, D) of unit length.
            labels: (levels, B, N).
        """
        labelled = (labels >= 0) & (labels < len(prototypes))
        labels = labels.where(labelled, 0)
        # Labels as counted in their level.
        first, results, local = 0, [], []
        for part, one in zip(prototypes.split(self._sizes), labels):
            local.append(one - first)
            results.append(self._compare(embedded, part, local[-1]))
            first += len(part)
        best, nearest = (torch.cat(each, dim=2) for each in list(zip(*results))[:2])
        total, own = (torch.stack(each) for each in list(zip(*results))[2:])
        scores = self.mask_norm(best)
        with torch.no_grad():
            target, moving = self._assign(own, labels, labelled)
            said = [each.argmax(dim=2) for each in scores.split(self._sizes, dim=2)]
            right = labelled & (torch.stack(said) == torch.stack(local))
            number = self._move(embedded, labels, moving, labelled, right)
        cosines = torch.stack(
            [(embedded * prototypes[one, m]).sum(dim=2) for one, m in zip(labels, target)]
        )
        contrast = total - cosines / self.temperature
        distance = (1 - cosines).square()
        losses = {
            "loss_prototype_contrast": self.contrast_weight * contrast,
            "loss_prototype_distance": self.distance_weight * distance,
        }
        losses = {name: loss.where(labelled, 0.0).sum() / number for name, loss in losses.items()}
        return scores, nearest, losses

    def _compare(self, embedded: Tensor, prototypes: Tensor, labels: Tensor) -> list[Tensor]:
        """Compare all cells with all prototypes, and keep only what is needed of the cosines.

        Returns:
            best: (B, N, K) largest cosine with a prototype of each class.
            nearest: (B, N, K) which it is.
            total: (B, N) log sum exp of the cosines / temperature with all prototypes.
            own: (B, N, M) cosines with the prototypes of the cell's own class, without gradients.
        """

        def compare(embedded: Tensor, part: Tensor, first: int) -> tuple[Tensor, ...]:
            cosines = (embedded @ part.flatten(0, 1).mT).unflatten(2, part.shape[:2])
            best, nearest = cosines.max(dim=3)
            # A division by 1, the default, would copy all cosines.
            scaled = cosines if self.temperature == 1 else cosines / self.temperature
            total = scaled.flatten(2).logsumexp(dim=2)
            places = (labels - first).clamp(0, len(part) - 1)
            index = places[..., None, None].expand(-1, -1, 1, cosines.shape[3])
            own = cosines.detach().gather(2, index)[:, :, 0]
            here = (places == labels - first)[..., None]
            return best, nearest, total[..., None], own.where(here, 0.0)

        cells = embedded.shape[0] * embedded.shape[1]
        parts = list(_split(prototypes, cells))
        if len(parts) == 1:
            best, nearest, total, own = compare(embedded, prototypes, 0)
            return [best, nearest, total[..., 0], own]
        # Cosines are computed again in the backward pass, so that those of one part at a time are
        # held.
        firsts = range(0, len(prototypes), len(parts[0]))
        results = [
            checkpoint(
                compare, embedded, part, first, use_reentrant=False, preserve_rng_state=False
            )
            for part, first in zip(parts, firsts)
        ]
        best, nearest, total = (torch.cat(each, dim=2) for each in list(zip(*results))[:3])
        return [best, nearest, total.logsumexp(dim=2), sum(result[3] for result in results)]

    def _assign(self, own: Tensor, labels: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster the cells of each class.

        Returns:
            (levels, B, N) the prototype of its class that each cell is to be near to, and the one
            that it moves.
        """
        classes = len(self.prototypes)
        # Ignored cells are a class of their own, so that the device need not be waited for.
        groups = labels.where(labelled, classes).flatten()
        shares = equal_shares(
            own.flatten(0, -2) / self.epsilon, groups, classes + 1, iterations=self.iterations
        ).view_as(own)
        target = shares.argmax(dim=-1)
        if self.assignment == "argmax":
            return target, target
        return target, (shares + gumbel_noise(shares)).argmax(dim=-1)

    def _move(
        self, embedded: Tensor, labels: Tensor, moving: Tensor, labelled: Tensor, right: Tensor
    ) -> Tensor:
        """Move the prototypes towards the cells that are theirs and classified right.

        Returns:
            The number of labelled cells, averaged over the workers; 1 where there are none.
        """
        count = self.prototypes.shape[0] * self.prototypes.shape[1]
        index = (labels * self.prototypes.shape[1] + moving).where(right, count).flatten(1)
        cells = embedded.flatten(0, 1)
        sums = cells.new_zeros(count + 1, cells.shape[1])
        for places in index:
            sums.index_add_(0, places, cells)
        unfit = labelled & ~embedded.isfinite().all(dim=2)
        # One collective operation for all.
        sums, numbers = sums[:count], torch.stack([labelled[0].sum(), unfit.sum()]).to(sums.dtype)
        sums, numbers = sum_over_workers(torch.cat([sums.flatten(), numbers])).split(
            [sums.numel(), len(numbers)]
        )
        sums = sums.view_as(self.prototypes)
        means = F.normalize(sums, dim=2)
        start = F.normalize(self.prototypes, dim=2)
        moved = F.normalize(self.momentum * start + (1 - self.momentum) * means, dim=2)
        has_cells = sums.abs().amax(dim=2, keepdim=True) > 0
        moved = moved.where(has_cells & (numbers[1] == 0), start)
        self.prototypes.copy_(moved)
        number = numbers[0] / comm.get_world_size()
        return number.where(number > 0, 1)


def gumbel_noise(like: Tensor) -> Tensor:
    """Draw from the standard Gumbel distribution."""
    return -torch.empty_like(like).exponential_().log()


def _split(prototypes: Tensor, cells: int) -> Iterator[Tensor]:
    """Split (K, M, D) prototypes by classes; of a part and all cells there are few cosines."""
    classes = max(1, MAX_COSINES // max(1, cells * prototypes.shape[1]))
    yield from prototypes.split(classes)


def _check(fits: bool, key: str, value: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f"MODEL.PROTOSEG.{key} is {value!r}; it must be {expected}")
