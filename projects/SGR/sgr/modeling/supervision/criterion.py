"""The losses that make concept regions semantic (Eq. 6, 7)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.losses import dice_loss, focal_terms, mean_over_workers
from ..layers.precision import at_least_float32
from ..reasoning import ConceptRegions
from ..recording import ConceptRecord
from .losses import noisy_or_union, pairwise_cosine, sum_union
from .matcher import ConceptMatcher
from .targets import ComponentMaps, component_targets

UNIONS = {"sum": sum_union, "noisy_or": noisy_or_union}


class ConceptLosses(NamedTuple):
    """The result of :class:`ConceptCriterion`.

    Attributes:
        losses: "focal", "dice" and "cosine", weighted scalars.
        matched: (B, K) bool on the host: the concepts matched in each image.
        active: share of the regions that pass 0.5 somewhere in their image, a scalar. It stays on
            the device, so that nobody waits for it.
    """

    losses: dict[str, Tensor]
    matched: np.ndarray
    active: Tensor


class ConceptCriterion(nn.Module):
    """The losses of Eq. 6: focal and dice of each component's united regions, and their cosine.

    It sums each term over the components of the batch and divides by their number over all workers.
    The cosine term is the mean over the pairs of regions that share a component. Eq. 6 has the sum
    over all pairs; with it, the weight of the term would grow with the square of L / C.

    The same on full-size masks, image by image, is in tools/benchmarks/matcher.py.

    Args:
        matcher: gives each component its concepts.
        weight: beta in Eq. 7, a factor of all three terms.
        focal_weight, dice_weight, cosine_weight: 1, rho and gamma in Eq. 6.
        focal_alpha, focal_gamma: weight of the inside, and focusing exponent, of the focal loss.
        union: "sum" (Eq. 6) or "noisy_or", ``1 - prod(1 - P)``, which stays in [0, 1].

    Raises:
        ValueError: for another union.

    Cost: two products of (C, M) by (M, N) matrices per image for M matched concepts, and those of
    the matcher. It computes in float32, also under autocast. It has neither parameters nor state.
    """

    def __init__(
        self,
        matcher: ConceptMatcher,
        *,
        weight: float = 0.25,
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
        cosine_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        union: str = "noisy_or",
    ):
        super().__init__()
        if union not in UNIONS:
            raise ValueError(f"unknown union {union!r}; known: {', '.join(UNIONS)}")
        self.matcher = matcher
        self.weights = {
            "focal": weight * focal_weight,
            "dice": weight * dice_weight,
            "cosine": weight * cosine_weight,
        }
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.union = union

    @classmethod
    def from_config(cls, cfg) -> ConceptCriterion:
        """Build matcher and criterion from ``cfg.MODEL.SGR``.

        Raises:
            ValueError: if K (NUM_CONCEPTS) is smaller than L (SUPERVISION.MAX_ACTIVE).
        """
        supervision = cfg.MODEL.SGR.SUPERVISION
        if cfg.MODEL.SGR.NUM_CONCEPTS < supervision.MAX_ACTIVE:
            raise ValueError(
                f"MODEL.SGR.NUM_CONCEPTS (K = {cfg.MODEL.SGR.NUM_CONCEPTS}) is smaller than "
                f"MODEL.SGR.SUPERVISION.MAX_ACTIVE (L = {supervision.MAX_ACTIVE}); "
                "the paper has K > L, 512 and 64"
            )
        return cls(
            ConceptMatcher.from_config(cfg),
            weight=supervision.WEIGHT,
            focal_weight=supervision.FOCAL_WEIGHT,
            dice_weight=supervision.DICE_WEIGHT,
            cosine_weight=supervision.COSINE_WEIGHT,
            focal_alpha=supervision.FOCAL_ALPHA,
            focal_gamma=supervision.FOCAL_GAMMA,
            union=supervision.UNION,
        )

    def forward(
        self,
        regions: ConceptRegions,
        component_maps: Sequence[Tensor],
        num_components: Sequence[int],
    ) -> ConceptLosses:
        """Compute the losses of a batch.

        Args:
            regions: of the batch, with their stride.
            component_maps: for each image (H, W) integers: index of the pixel's component, or -1.
            num_components: C of each image.

        Raises:
            ValueError: if the regions have no stride, or are of another number of images; see also
                :func:`component_targets` and :class:`ConceptMatcher`.
        """
        logits = regions.logits
        if regions.stride is None:
            raise ValueError(
                "concept regions without a stride cannot be compared with component maps: give "
                "their reasoning module a stride, in pixels per cell (stride=...), or let "
                "sgr.add_reasoning find it from an example whose sides are multiples of it"
            )
        if len(component_maps) != len(logits):
            raise ValueError(
                f"there are concept regions of {len(logits)} images, but component maps of "
                f"{len(component_maps)}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            targets = component_targets(
                component_maps, num_components, logits.shape[-2:], regions.stride, logits.device
            )
            logits = at_least_float32(logits).flatten(2)
            targets = targets._replace(
                masks=targets.masks.to(logits.dtype), weights=targets.weights.to(logits.dtype)
            )
            assignment = self.matcher(logits, targets)
            losses = self._losses(logits, targets, assignment)
        active = (logits.detach().amax(dim=2) > 0).float().mean()
        return ConceptLosses(losses, (assignment >= 0).numpy(), active)

    def of_record(
        self,
        record: ConceptRecord,
        component_maps: Sequence[Tensor],
        num_components: Sequence[int],
    ) -> dict[str, Tensor]:
        """Add up the losses of all recorded modules that learn from them; none gives no loss.

        Args:
            record: of :func:`sgr.record_concepts`.
            component_maps, num_components: as above.
        """
        losses: dict[str, Tensor] = {}
        for regions in record.supervised().values():
            for term, loss in self(regions, component_maps, num_components).losses.items():
                losses[term] = losses[term] + loss if term in losses else loss
        return losses

    def _losses(self, logits, targets, assignment) -> dict[str, Tensor]:
        # Only the M matched concepts of an image have a loss. Images with fewer are filled up with
        # others, which belong to no group.
        most_matched = (assignment.numpy() >= 0).sum(axis=1).max()  # it is on the CPU
        matched_first = (assignment < 0).int().argsort(dim=1, stable=True)[:, :most_matched]
        assignment = assignment.gather(1, matched_first).to(logits.device, non_blocking=True)
        matched_first = matched_first.to(logits.device, non_blocking=True)
        logits = logits.gather(1, matched_first[..., None].expand(-1, -1, logits.shape[2]))

        columns = torch.arange(targets.masks.shape[1], device=logits.device)
        groups = (assignment[..., None] == columns).to(logits.dtype)  # (B, M, C)
        matched = groups.any(dim=1).to(logits.dtype)  # (B, C); not all, where C > K

        union, log_inside, log_outside = UNIONS[self.union](logits, groups)
        weights, masks = targets.weights[:, None], targets.masks
        inside, outside = focal_terms(log_inside, log_outside, self.focal_alpha, self.focal_gamma)
        cells = targets.weights.sum(dim=1).clamp_min(torch.finfo(logits.dtype).eps)[:, None]
        focal = (weights * (masks * inside + (1 - masks) * outside)).sum(dim=2) / cells
        weighted = weights * masks
        # A sum of regions may pass 1. Inside the component, the excess gains nothing.
        dice = dice_loss(
            (weighted * union.clamp_max(1)).sum(dim=2),
            (weights * union).sum(dim=2),
            weighted.sum(dim=2),
        )
        cosine = pairwise_cosine(logits.sigmoid(), targets.weights, groups)

        num_components = mean_over_workers(sum(targets.counts), logits.device)
        terms = {"focal": focal, "dice": dice, "cosine": cosine}
        # The empty sum keeps the regions in the graph where nothing matched, as DDP needs it.
        nothing = 0 * logits.sum()
        return {
            name: self.weights[name] * (term * matched).sum() / num_components + nothing
            for name, term in terms.items()
        }


class ConceptLoss(nn.Module):
    """The concept losses of a recorded forward pass as one scalar, for a loop of your own.

    It adds :class:`ConceptCriterion` over all reasoning modules of the model that learn from
    components. Others, such as GloRe, add nothing.

    Args:
        max_active: L, at most as many as a module has concepts; see :class:`ConceptMatcher`.
        **options: of :class:`ConceptCriterion`. The weights of the terms, and alpha and gamma of
            the focal loss, hold for the matching too.

    Example::

        criterion = sgr.ConceptLoss(max_active=64)
        with sgr.record_concepts(model) as record:
            task_loss = F.cross_entropy(model(images), labels)
        loss = task_loss + criterion(record, component_maps)
    """

    def __init__(self, *, max_active: int = 64, **options: Any):
        super().__init__()
        shared = ("focal_weight", "dice_weight", "focal_alpha", "focal_gamma")
        of_matcher = {name: options[name] for name in shared if name in options}
        matcher = ConceptMatcher(max_active=max_active, **of_matcher)
        self.criterion = ConceptCriterion(matcher, **options)

    def forward(
        self, record: ConceptRecord, component_maps: ComponentMaps | Sequence[Tensor]
    ) -> Tensor:
        """
        Args:
            record: of :func:`sgr.record_concepts`, for one forward pass.
            component_maps: of the batch, as :class:`sgr.ComponentCollate` makes them; or for each
                image (H, W) integers, the index of the pixel's component or -1, where the indices
                of an image have no gaps. The latter are counted here, which waits for the device
                that they are on.

        Returns:
            A scalar with its graph.

        Raises:
            ValueError: see :meth:`ComponentMaps.of`, :meth:`ConceptCriterion.forward` and
                :meth:`ConceptRecord.supervised`.
        """
        return sum(self.terms(record, component_maps).values(), torch.zeros(()))

    def terms(
        self, record: ConceptRecord, component_maps: ComponentMaps | Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The same as "focal", "dice" and "cosine", weighted, for logs; empty if nothing learns."""
        if not isinstance(component_maps, ComponentMaps):
            component_maps = ComponentMaps.of(component_maps)
        losses = self.criterion.of_record(record, *component_maps)
        for name, regions in record.supervised().items():
            _warn_of_misuse(name, regions, component_maps.indices)
        return losses


def _warn_of_misuse(name: str, regions: ConceptRegions, maps: Sequence[Tensor]) -> None:
    """Warn of what gives a loss that looks right, and teaches nothing, or something else."""
    if torch.is_grad_enabled() and not regions.logits.requires_grad:
        warnings.warn(
            f"the regions of {name!r} have no gradient, so their concept losses train nothing: "
            "record them where gradients are on; torch.utils.checkpoint needs use_reentrant=False",
            stacklevel=2,
        )
    assert regions.stride is not None  # the criterion has asked for it
    height, width = (side * regions.stride for side in regions.logits.shape[-2:])
    if all(2 * each.shape[0] < height and 2 * each.shape[1] < width for each in maps):
        warnings.warn(
            f"all component maps are less than half as high and as wide as what the regions of "
            f"{name!r} cover: make them in the size of the images that the network gets",
            stacklevel=2,
        )
