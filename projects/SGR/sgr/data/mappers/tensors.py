"""Ground truth of a crop as the tensors that models learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from ..components import connected_components


def component_tensors(
    labels: np.ndarray, *, ignore_label: int, **options: Any
) -> dict[str, torch.Tensor]:
    """The connected components of a crop, as concept supervision reads them.

    Args:
        labels: (H, W) classes of the crop.
        ignore_label: label of ignored pixels.
        **options: see :func:`sgr.data.components.connected_components`.

    Returns:
        ``component_map``, (H, W) int16, the component of each pixel or -1, and
        ``component_classes``, (C,) int64.
    """
    components = connected_components(labels, ignore_label=ignore_label, **options)
    return {
        "component_map": torch.from_numpy(components.indices),
        "component_classes": torch.from_numpy(components.classes),
    }


def mask_instances(masks: np.ndarray, classes: np.ndarray) -> Instances:
    """Masks and their classes, as mask classification reads them.

    Args:
        masks: (N, H, W) bool, padded; N may be 0.
        classes: (N,) integers.

    Returns:
        ``gt_masks``, (N, H, W) bool, and ``gt_classes``, (N,) int64. The public MaskFormer and
        Mask2Former read the same form.
    """
    instances = Instances(masks.shape[1:])
    instances.gt_classes = torch.from_numpy(np.asarray(classes, np.int64))
    instances.gt_masks = torch.from_numpy(masks)
    return instances
