"""What the losses of masks and of concept regions, and their matchings, share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, distributed


def focal_terms(
    log_inside: Tensor, log_outside: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Compute the focal loss of a probability p for target 1 and for target 0.

    Args:
        log_inside: log p.
        log_outside: log(1 - p).
        alpha: weight of target 1; target 0 has 1 - alpha.
        gamma: exponent of the focusing factor.

    Returns:
        ``-alpha (1 - p)^gamma log p`` and ``-(1 - alpha) p^gamma log(1 - p)``. For a target t in
        [0, 1] the loss is t times the first plus 1 - t times the second: the mean over the pixels
        of a cell.
    """
    inside = -alpha * (gamma * log_outside).exp() * log_inside
    outside = -(1 - alpha) * (gamma * log_inside).exp() * log_outside
    return inside, outside


def dice_loss(intersection: Tensor, mass: Tensor, area: Tensor) -> Tensor:
    """Compute ``1 - (2 intersection + 1) / (mass + area + 1)``.

    Args:
        intersection: sum over the cells of prediction times target.
        mass: sum of the prediction.
        area: sum of the target.
    """
    # Adding 1 avoids 0 / 0.
    return 1 - (2 * intersection + 1) / (mass + area + 1)


def matching_costs(costs: Tensor) -> np.ndarray:
    """Copy costs to the host, with numbers in the place of what is not finite.

    A diverged model shall show a loss that is not finite, in all processes, and not a failure of
    the assignment in one of them.
    """
    return np.nan_to_num(costs.cpu().numpy(), nan=0.0, posinf=1e8, neginf=-1e8)


def mean_over_workers(number: float | Tensor, device: torch.device) -> Tensor:
    """Compute the mean of a number over the workers of a distributed training, to divide sums by.

    All workers must call it. The result is a float32 scalar on ``device``, and 1 if no worker has
    any: the sums are 0 then. Nothing waits for a number that is a scalar on ``device``.
    """
    value = torch.zeros((), device=device) + number
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value.where(value > 0, 1)
