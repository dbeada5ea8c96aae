"""Mask R-CNN on a feature pyramid with SGR, which runs in tenths of a second on small images."""

from detectron2.config import CfgNode

from sgr.engine import load_config

OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "ConceptGeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_sgr_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.SGR.NUM_CONCEPTS": 8,
    "MODEL.SGR.TOKEN_DIM": 16,
    "MODEL.SGR.DIM_FEEDFORWARD": 32,
    "MODEL.SGR.SUPERVISION.WEIGHT": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [32], [64], [128], [256]]",
    "MODEL.RPN.IN_FEATURES": "['p2', 'p3', 'p4', 'p5', 'p6']",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": "['p2', 'p3', 'p4', 'p5']",
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.DATASET_MAPPER_NAME": "detectron2_default",
    "DATASETS.TRAIN": "('shapes_instance_train',)",
    "DATASETS.TEST": "('shapes_instance_val',)",
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "DATALOADER.NUM_WORKERS": 0,
}


def tiny_detector_config(**more) -> CfgNode:
    """The config; ``A__B=1`` sets A.B to 1."""
    options = {**OPTIONS, **{key.replace("__", "."): value for key, value in more.items()}}
    return load_config("", [str(each) for pair in options.items() for each in pair])
