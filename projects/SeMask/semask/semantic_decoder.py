"""The semantic decoder of SeMask: the sum of the semantic maps, and its loss (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.modeling.per_pixel.losses import mean_over_labelled, resize
from sgr.modeling.supervision.side_criteria import (
    SIDE_CRITERION_REGISTRY,
    SideCriterion,
    check_inputs,
)

LOSS_MEANS = ("all_pixels", "labelled_pixels")


def sum_maps(maps: Sequence[Tensor], *, align_corners: bool = False) -> Tensor:
    """Add the semantic maps of all stages at the size of the finest.

    A map is doubled as often as the stages before it halve: three times by two is not once by
    eight. What then has another size, because sides were odd, is resized.

    Args:
        maps: (B, K, h_i, w_i), the finest first.
        align_corners: of all bilinear resizing.

    Returns:
        (B, K, h_1, w_1).
    """
    size = maps[0].shape[-2:]
    total = maps[0]
    for index, level in enumerate(maps[1:], 1):
        for _ in range(index):
            level = F.interpolate(
                level, scale_factor=2, mode="bilinear", align_corners=align_corners
            )
        total = total + resize(level, size, align_corners=align_corners)
    return total


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_value: int = 255, mean: str = "all_pixels"
) -> Tensor:
    """Sum the cross entropy of the labelled pixels, and divide by the number of pixels.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 classes or ``ignore_value``.
        mean: which pixels are counted: "all_pixels", or "labelled_pixels" of all workers.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=ignore_value, reduction="none")
    if mean == "all_pixels":
        return losses.mean()
    return mean_over_labelled(losses, labels, ignore_value)


@SIDE_CRITERION_REGISTRY.register()
class SemanticMapSupervision(SideCriterion):
    """``loss_cate``: cross entropy of the summed semantic maps, weighted by alpha (Sec. 3.3).

    It goes with any meta-architecture whose backbone, or the network below its pyramid, puts out
    semantic maps. Each input needs the labels ``sem_seg`` (H, W). At its peak it holds three
    float32 arrays of B K H W numbers, as the loss of a per-pixel head does.

    Args:
        backbone: name of the module in the model, whose output has the maps.
        features: names of the maps in its output, the finest first.
        stride: pixels per cell of the first.
        weight: alpha.
        align_corners: see :func:`sum_maps`.
        mean: see :func:`cross_entropy`.
        ignore_value: label of pixels without loss.

    Raises:
        ValueError: ``mean`` is unknown.
    """

    def __init__(
        self,
        backbone: str,
        features: Sequence[str],
        *,
        stride: int = 4,
        weight: float = 0.4,
        align_corners: bool = False,
        mean: str = "all_pixels",
        ignore_value: int = 255,
    ):
        super().__init__()
        if mean not in LOSS_MEANS:
            raise ValueError(
                f"mean (MODEL.SEMASK.LOSS_MEAN) is {mean!r}; it must be one of "
                f"{', '.join(LOSS_MEANS)}"
            )
        self.recorded_modules = [backbone]
        self.features = list(features)
        self.stride = stride
        self.weight = weight
        self.align_corners = align_corners
        self.mean = mean
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> SemanticMapSupervision | None:
        """Build it from ``cfg.MODEL.SEMASK``.

        Returns:
            None if LOSS_WEIGHT is 0.

        Raises:
            ValueError: no module of the model puts out semantic maps, or these have other classes
                than the head.
        """
        options, head = cfg.MODEL.SEMASK, cfg.MODEL.SEM_SEG_HEAD
        if options.LOSS_WEIGHT == 0:
            return None
        found = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "semantic_features")
        }
        if not found:
            raise ValueError(
                f"MODEL.SIDE_CRITERIA has {cls.__name__}, but no backbone with semantic maps: set "
                "MODEL.BACKBONE.NAME build_semask_swin_backbone, or MODEL.SEMASK.LOSS_WEIGHT 0.0"
            )
        (name, backbone), *_ = found.items()
        shapes = [backbone.output_shape()[feature] for feature in backbone.semantic_features]
        if shapes[0].channels != head.NUM_CLASSES:
            raise ValueError(
                f"the semantic maps of {name} have {shapes[0].channels} classes, but "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}; labels are those of the "
                "head, so give both the same number"
            )
        return cls(
            name,
            backbone.semantic_features,
            stride=shapes[0].stride,
            weight=options.LOSS_WEIGHT,
            align_corners=options.ALIGN_CORNERS,
            mean=options.LOSS_MEAN,
            ignore_value=head.IGNORE_VALUE,
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
            "labels 'sem_seg', which semantic maps learn from; train with a mapper of label maps "
            "(INPUT.DATASET_MAPPER_NAME), or set MODEL.SEMASK.LOSS_WEIGHT 0.0",
        )
        output = record[self.recorded_modules[0]]
        with torch.autocast(output[self.features[0]].device.type, enabled=False):
            return {"loss_cate": self.weight * self._loss(output, batched_inputs)}

    def _loss(
        self, output: Mapping[str, Tensor], batched_inputs: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        maps = sum_maps(
            [output[name].float() for name in self.features], align_corners=self.align_corners
        )
        # The cells cover the padded images of the batch.
        height, width = (side * self.stride for side in maps.shape[-2:])
        labels = torch.full((len(maps), height, width), self.ignore_value, device=maps.device)
        for index, image in enumerate(batched_inputs):
            own = image["sem_seg"]
            labels[index, : own.shape[0], : own.shape[1]] = own.to(labels.device, non_blocking=True)
        maps = resize(maps, (height, width), align_corners=self.align_corners)
        return cross_entropy(maps, labels, ignore_value=self.ignore_value, mean=self.mean)
