"""The assignment of concepts to components (Sec. 3.3, Fig. 3)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ..layers.losses import dice_loss, focal_terms, matching_costs
from .targets import ComponentTargets


class ConceptMatcher:
    """Match concept regions to components in two stages, many to one.

    1. The Hungarian method gives every component one concept. With more components than concepts,
       it gives every concept one component.
    2. The remaining concepts are taken greedily, the cheapest first, each for its cheapest
       component, until ``max_active`` are matched.

    A literal version is in tools/benchmarks/matcher.py.

    Args:
        max_active: L, the most concepts to match in an image. If an image has more components,
            more are matched.
        focal_weight, dice_weight: of the two terms of the cost (1 and rho in Eq. 5).
        focal_alpha, focal_gamma: of the focal term.

    Raises:
        ValueError: if ``max_active`` is not positive.
    """

    def __init__(
        self,
        *,
        max_active: int = 64,
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ):
        if max_active < 1:
            raise ValueError(f"max_active must be positive, got {max_active}")
        self.max_active = max_active
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg) -> ConceptMatcher:
        """Build the matcher from ``cfg.MODEL.SGR.SUPERVISION``."""
        supervision = cfg.MODEL.SGR.SUPERVISION
        return cls(
            max_active=supervision.MAX_ACTIVE,
            focal_weight=supervision.FOCAL_WEIGHT,
            dice_weight=supervision.DICE_WEIGHT,
            focal_alpha=supervision.FOCAL_ALPHA,
            focal_gamma=supervision.FOCAL_GAMMA,
        )

    @torch.no_grad()
    def __call__(self, logits: Tensor, targets: ComponentTargets) -> Tensor:
        """Match a batch, with one copy from the device to the host.

        Args:
            logits: (B, K, N), float32.
            targets: components on the same cells.

        Returns:
            (B, K) int64 on the host: index of the concept's component, or -1 for none.

        Raises:
            ValueError: if there are fewer concepts than ``max_active``.
        """
        batch, num_concepts = logits.shape[:2]
        if num_concepts < self.max_active:
            raise ValueError(
                f"there are {num_concepts} concepts, but {self.max_active} are to be matched in an "
                "image; raise num_concepts (MODEL.SGR.NUM_CONCEPTS) or lower max_active "
                "(MODEL.SGR.SUPERVISION.MAX_ACTIVE)"
            )
        assignment = np.full((batch, num_concepts), -1)
        if max(targets.counts, default=0) > 0:
            costs = matching_costs(self.cost(logits, targets))
            for image, count in enumerate(targets.counts):
                self._match_image(costs[image, :, :count], assignment[image])
        return torch.from_numpy(assignment)

    def cost(self, logits: Tensor, targets: ComponentTargets) -> Tensor:
        """Compute the costs of all pairs (Eq. 5): (B, K, N) and (B, C, N) -> (B, K, C).

        It takes two batched matrix products, ``2 * B * K * C * N`` multiply-adds.
        """
        inside, outside = focal_terms(
            F.logsigmoid(logits), F.logsigmoid(-logits), self.focal_alpha, self.focal_gamma
        )
        regions = logits.sigmoid()
        weighted = targets.masks * targets.weights[:, None]
        cells = targets.weights.sum(dim=1).clamp_min(torch.finfo(logits.dtype).eps)
        focal = (inside - outside) @ weighted.mT + outside @ targets.weights[..., None]
        focal = focal / cells[:, None, None]
        dice = dice_loss(
            regions @ weighted.mT,
            regions @ targets.weights[..., None],
            weighted.sum(dim=2)[:, None],
        )
        return self.focal_weight * focal + self.dice_weight * dice

    def _match_image(self, cost: np.ndarray, assignment: np.ndarray) -> None:
        if cost.shape[1] == 0:
            return
        concepts, components = linear_sum_assignment(cost)
        assignment[concepts] = components
        left = np.flatnonzero(assignment < 0)
        wanted = min(max(self.max_active - len(concepts), 0), len(left))
        cheapest = left[np.argsort(cost[left].min(axis=1), kind="stable")[:wanted]]
        assignment[cheapest] = cost[cheapest].argmin(axis=1)
