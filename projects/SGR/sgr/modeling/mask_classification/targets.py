"""From a batch's instances to the targets of mask classification, with their checks."""

from __future__ import annotations

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor
from torch.nn import functional as F


def prepare_targets(
    batched_inputs: list[dict], images: ImageList, num_classes: int
) -> list[dict[str, Tensor]]:
    """Take the labels and masks of each image, and pad the masks to the size of the batch.

    Args:
        batched_inputs: see :meth:`MaskFormerSegmentor.forward`.
        images: the batch of the images, padded to one size, on the device of the targets.
        num_classes: classes of the head. Labels are checked only if they are on a CPU: elsewhere
            the check would have to wait for the device.

    Returns:
        Per image a dict of ``labels`` (N_i,) and ``masks`` (N_i, H, W).

    Raises:
        ValueError: an image has no ``instances``. Or these have no masks, polygons, masks of
            another size than the image, or labels that are no class of the head.
    """
    height, width = images.tensor.shape[-2:]
    targets = []
    for index, (inputs, size) in enumerate(zip(batched_inputs, images.image_sizes)):
        if "instances" not in inputs:
            raise ValueError(
                f"image {index} of the batch has no 'instances' to train on, only "
                f"{sorted(inputs)}; INPUT.DATASET_MAPPER_NAME must be a mask-classification "
                "mapper"
            )
        _check_labels(index, inputs["instances"].gt_classes, num_classes)
        instances = inputs["instances"].to(images.device, non_blocking=True)
        masks = _masks(index, instances, size)
        padding = (0, width - size[1], 0, height - size[0])
        targets.append({"labels": instances.gt_classes, "masks": F.pad(masks, padding)})
    return targets


def _masks(index: int, instances: Instances, size: tuple[int, int]) -> Tensor:
    if not instances.has("gt_masks"):
        if len(instances):
            raise ValueError(
                f"the instances of image {index} of the batch have no gt_masks, only "
                f"{sorted(instances.get_fields())}; set MODEL.MASK_ON to True, which "
                "Detectron2's own mapper goes by, or INPUT.DATASET_MAPPER_NAME to a "
                "mask-classification mapper (mask_former_..., coco_..._lsj_concept)"
            )
        # Detectron2's own mapper gives no masks if it finds no instance.
        return torch.zeros(0, *size, dtype=torch.bool, device=instances.gt_classes.device)
    masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)
    if not isinstance(masks, Tensor):
        raise ValueError(
            f"gt_masks of image {index} of the batch are {type(masks).__name__}; set "
            "INPUT.MASK_FORMAT to 'bitmask'"
        )
    if tuple(masks.shape[-2:]) != tuple(size):
        raise ValueError(
            f"masks of image {index} of the batch are {tuple(masks.shape[-2:])}, but the "
            f"image is {tuple(size)}"
        )
    return masks


def _check_labels(index: int, labels: Tensor, num_classes: int) -> None:
    if labels.device.type != "cpu" or not len(labels):
        return
    for label in (labels.min().item(), labels.max().item()):
        if not 0 <= label < num_classes:
            raise ValueError(
                f"an instance of image {index} of the batch has the label {label}, but the "
                f"head has the classes 0 to {num_classes - 1}; set "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES ({num_classes}) to those of the dataset"
            )
