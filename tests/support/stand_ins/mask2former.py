"""A stand-in for the public Mask2Former: its names and interface, around a single convolution.

It offers what a training script imports from the package, under the names that configs know. Like
the original, its config function assigns where ours would keep what is there.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

__all__ = ["MaskFormer", "add_maskformer2_config"]


def add_maskformer2_config(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 0
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    cfg.MODEL.SWIN = CfgNode({"EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2], "WINDOW_SIZE": 7})
    cfg.MODEL.MASK_FORMER = CfgNode(
        {
            "DEEP_SUPERVISION": True,
            "NO_OBJECT_WEIGHT": 0.1,
            "CLASS_WEIGHT": 1.0,
            "DICE_WEIGHT": 1.0,
            "MASK_WEIGHT": 20.0,
            "NHEADS": 8,
            "DROPOUT": 0.1,
            "DIM_FEEDFORWARD": 2048,
            "ENC_LAYERS": 0,
            "DEC_LAYERS": 6,
            "PRE_NORM": False,
            "HIDDEN_DIM": 256,
            "NUM_OBJECT_QUERIES": 100,
            "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
            "TRANSFORMER_IN_FEATURE": "res5",
            "ENFORCE_INPUT_PROJ": False,
            "SIZE_DIVISIBILITY": 32,
            "TRAIN_NUM_POINTS": 12544,
            "OVERSAMPLE_RATIO": 3.0,
            "IMPORTANCE_SAMPLE_RATIO": 0.75,
            "TEST": {
                "SEMANTIC_ON": True,
                "INSTANCE_ON": False,
                "PANOPTIC_ON": False,
                "OBJECT_MASK_THRESHOLD": 0.0,
                "OVERLAP_THRESHOLD": 0.0,
                "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
            },
        }
    )


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Classes by a 1x1 convolution on the last feature map."""

    @configurable
    def __init__(self, *, backbone, num_classes, size_divisibility, metadata, mean, std):
        super().__init__()
        self.backbone = backbone
        last, shape = list(backbone.output_shape().items())[-1]
        self.in_feature = last
        self.sem_seg_head = nn.Conv2d(shape.channels, num_classes, 1)
        self.size_divisibility = size_divisibility
        self.metadata = metadata
        self.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
            "mean": cfg.MODEL.PIXEL_MEAN,
            "std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def forward(self, batched_inputs):
        images = [
            (each["image"].to(self.device) - self.pixel_mean) / self.pixel_std
            for each in batched_inputs
        ]
        images = ImageList.from_tensors(images, self.size_divisibility)
        logits = self.sem_seg_head(self.backbone(images.tensor)[self.in_feature])
        logits = F.interpolate(logits, size=images.tensor.shape[-2:])
        if self.training:
            instances = [each["instances"].to(self.device) for each in batched_inputs]
            return {"loss_mask": sum(map(mask_loss, logits, instances)) / len(instances)}
        return [
            {"sem_seg": sem_seg_postprocess(scores, size, each["height"], each["width"])}
            for scores, size, each in zip(logits, images.image_sizes, batched_inputs)
        ]


def mask_loss(logits, instances):
    """Of an image: (classes, H, W) logits; gt_classes (N,) and gt_masks (N, h, w)."""
    masks = instances.gt_masks
    logits = logits[instances.gt_classes, : masks.shape[1], : masks.shape[2]]
    return F.binary_cross_entropy_with_logits(logits, masks.float())
