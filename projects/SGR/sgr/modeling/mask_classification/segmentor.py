"""MaskFormer and Mask2Former as Detectron2 meta-architectures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..layers.checks import find_registered
from ..layers.strips import Strips
from ..outputs import RESULTS, Outputs, check_semantic_output, mask_scores, thing_numbers
from .criteria.point_criterion import PointSetCriterion
from .criteria.set_criterion import CRITERION_REGISTRY, SetCriterion
from .inference import (
    PANOPTIC_MERGE_REGISTRY,
    instance_inference,
    merge_by_pixel,
    merge_by_pixel_within_masks,
    semantic_inference,
)
from .targets import prepare_targets


@META_ARCH_REGISTRY.register()
class MaskFormerSegmentor(nn.Module):
    """Mask classification (MaskFormer) for semantic, panoptic and instance segmentation.

    Attributes:
        outputs: see :class:`~sgr.modeling.outputs.Outputs`.
        criterion_class: the criterion, if MODEL.MASK_FORMER.CRITERION_NAME is "".
        panoptic_merge: the rule that makes segments of masks, see :func:`merge_by_pixel`, if
            MODEL.MASK_FORMER.TEST.PANOPTIC_MERGE is "".
    """

    outputs = Outputs(
        results=tuple(RESULTS),
        switchable=True,
        sem_seg="scores",
        resizes_masks="postprocess_before_inference",
        batch_scores=mask_scores,
    )
    criterion_class = SetCriterion
    panoptic_merge = staticmethod(merge_by_pixel)

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = -1,
        semantic_on: bool = True,
        semantic_output: str = "scores",
        panoptic_on: bool = False,
        instance_on: bool = False,
        thing_classes: Sequence[int] | None = None,
        object_mask_threshold: float = 0.0,
        overlap_threshold: float = 0.0,
        panoptic_merge: Callable | None = None,
        max_instances: int = 100,
        postprocess_before_inference: bool = False,
    ):
        """
        Args:
            backbone: of Detectron2's backbone interface.
            sem_seg_head: features -> dict of ``pred_logits`` and ``pred_masks``.
            criterion: predictions and targets -> losses, see :class:`SetCriterion`.
            pixel_mean, pixel_std: per channel, for the normalisation of the images.
            size_divisibility: images are padded to a multiple of this many pixels. A negative value
                means the backbone's own.
            semantic_on, panoptic_on, instance_on: which results to give in evaluation.
            semantic_output: what "sem_seg" is: "scores" (C, H, W), as in Detectron2, or "labels"
                (H, W), the best class, which takes a C-th of the memory.
            thing_classes: classes that have instances. None means that they are not known. Then
                panoptic results are not possible, and instance results have all classes.
            object_mask_threshold, overlap_threshold: of the panoptic rule.
            panoptic_merge: the panoptic rule; None for the class's own.
            max_instances: see :func:`instance_inference`.
            postprocess_before_inference: resize the masks, not the semantic result, to the
                requested size. It is slower if there are more queries than classes, and a little
                more exact. Panoptic and instance results always do it.

        Raises:
            ValueError: ``semantic_output`` has another value, or panoptic results have no
                ``thing_classes``.
        """
        super().__init__()
        check_semantic_output(semantic_output)
        if panoptic_on and thing_classes is None:
            raise ValueError(
                "panoptic results need the dataset's thing classes (thing_classes; in a config, "
                "thing_dataset_id_to_contiguous_id in the metadata of DATASETS.TRAIN[0], set "
                "before the model is built); or switch panoptic_on off "
                "(MODEL.MASK_FORMER.TEST.PANOPTIC_ON)"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        if size_divisibility < 0:
            size_divisibility = backbone.size_divisibility
        self.size_divisibility = size_divisibility
        self.semantic_on = semantic_on
        self.semantic_output = semantic_output
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.thing_classes = None if thing_classes is None else frozenset(thing_classes)
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        if panoptic_merge is not None:
            self.panoptic_merge = panoptic_merge
        self.max_instances = max_instances
        self.postprocess_before_inference = postprocess_before_inference
        # Not persistent, as in Detectron2: the config says them, not the checkpoint.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        options, test = cfg.MODEL.MASK_FORMER, cfg.MODEL.MASK_FORMER.TEST
        key = "MODEL.MASK_FORMER"
        criterion, panoptic_merge = cls.criterion_class, None
        if options.CRITERION_NAME:
            criterion = find_registered(
                CRITERION_REGISTRY, options.CRITERION_NAME, f"{key}.CRITERION_NAME"
            )
        if test.PANOPTIC_MERGE:
            panoptic_merge = find_registered(
                PANOPTIC_MERGE_REGISTRY, test.PANOPTIC_MERGE, f"{key}.TEST.PANOPTIC_MERGE"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": criterion(cfg, num_classes=sem_seg_head.num_classes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": options.SIZE_DIVISIBILITY,
            "semantic_on": test.SEMANTIC_ON,
            "semantic_output": test.SEMANTIC_OUTPUT,
            "panoptic_on": test.PANOPTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "thing_classes": _thing_classes(cfg),
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "panoptic_merge": panoptic_merge,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            # As in the public models: one set of resized masks serves all results.
            "postprocess_before_inference": (
                test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON or test.INSTANCE_ON
            ),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: per image a dict of

                * ``image``: (3, H_i, W_i) in the channel order of ``pixel_mean``, values 0 to 255;
                * ``instances`` (training): :class:`Instances` with ``gt_classes`` (N,) and
                  ``gt_masks`` (N, H_i, W_i), a bool tensor or ``BitMasks``. Semantic segmentation
                  has one for each class in the image. N may be 0;
                * ``height``, ``width`` (evaluation, optional): size of the results, by default
                  that of the image.

        Returns:
            In training, the weighted losses. In evaluation, per image a dict of the results that
            are switched on: ``sem_seg`` (C, height, width) scores or (height, width) int32 labels
            (see ``semantic_output``), ``panoptic_seg`` (see :func:`merge_by_pixel`) and
            ``instances`` (see :func:`instance_inference`).

        Raises:
            ValueError: in training, see :func:`prepare_targets`.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        images = ImageList.from_tensors(images, self.size_divisibility)
        if self.training:
            targets = prepare_targets(batched_inputs, images, self.criterion.num_classes)
            outputs = self.sem_seg_head(self.backbone(images.tensor))
            return self.criterion.weighted(self.criterion(outputs, targets))

        outputs = self.sem_seg_head(self.backbone(images.tensor))
        results = []
        with torch.autocast(self.device.type, enabled=False):
            for index, (inputs, size) in enumerate(zip(batched_inputs, images.image_sizes)):
                results.append(
                    self._inference(
                        outputs["pred_logits"][index].float(),
                        outputs["pred_masks"][index].float(),
                        padded_size=images.tensor.shape[-2:],
                        image_size=size,
                        output_size=(inputs.get("height", size[0]), inputs.get("width", size[1])),
                    )
                )
        return results

    def _inference(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        *,
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> dict:
        """Make the results of one image from its (Q, C + 1) and (Q, h, w) predictions."""
        # Under tracing Detectron2's sizes are tensors.
        padded_size, image_size, output_size = (
            (int(size[0]), int(size[1])) for size in (padded_size, image_size, output_size)
        )

        def to_image(masks: Strips) -> Strips:
            return masks.resize(*padded_size).crop(*image_size)

        def to_output(masks: Strips) -> Strips:
            return to_image(masks).resize(*output_size)

        result = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_inference(
                class_logits,
                mask_logits,
                resize=to_output if self.postprocess_before_inference else to_image,
                size=output_size,
                labels=self.semantic_output == "labels",
            )
        if self.panoptic_on:
            result["panoptic_seg"] = self.panoptic_merge(
                class_logits,
                mask_logits,
                thing_classes=self.thing_classes,
                score_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
                resize=to_output,
            )
        if self.instance_on:
            result["instances"] = instance_inference(
                class_logits,
                mask_logits,
                max_instances=self.max_instances,
                thing_classes=self.thing_classes,
                resize=to_output,
            )
        return result


@META_ARCH_REGISTRY.register()
class Mask2FormerSegmentor(MaskFormerSegmentor):
    """:class:`MaskFormerSegmentor` that trains on points of the masks (Mask2Former).

    The rest of Mask2Former is in its head: see :class:`MaskedAttentionPredictor` and
    :class:`DeformablePixelDecoder`.
    """

    criterion_class = PointSetCriterion
    panoptic_merge = staticmethod(merge_by_pixel_within_masks)


def _thing_classes(cfg: CfgNode) -> list[int] | None:
    """Find the things among the classes of the training set; None if its metadata do not tell."""
    if not cfg.DATASETS.TRAIN:
        return None
    # Detectron2's register_coco_instances fills the metadata when the data are loaded, so nothing
    # is known here. Loading takes long, and it fails if only evaluation data are there. It is not
    # needed either: in instance data all classes are things, which is what None means.
    return thing_numbers(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
