"""Every config key that the project adds to Detectron2's, with its unit and its source.

"Sec.", "Eq." and "Table" refer to the SGR paper. The keys under ``MODEL.MASK_FORMER``,
``MODEL.SEM_SEG_HEAD``, ``MODEL.SWIN`` and ``SOLVER`` have the names of the public MaskFormer and
Mask2Former. The keys of other projects are in these projects.
"""

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config


def add_sgr_config(cfg: CN) -> None:
    """Add the keys of SGR, Swin, timm, mask classification, data, solver and evaluators to ``cfg``.

    Args:
        cfg: a Detectron2 config, changed in place. Keys that exist already keep their values, for
            example those that the public MaskFormer has added.
    """
    _add_reasoning(cfg)
    _add_speed(cfg)
    _add_swin(cfg)
    _add_timm(cfg)
    _add_mask_classification(cfg)
    _add_per_pixel(cfg)
    _add_data(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def _set_defaults(node: CN, defaults: dict) -> None:
    for name, value in defaults.items():
        if name not in node:
            node[name] = CN(value) if isinstance(value, dict) else value
        elif isinstance(value, dict):
            _set_defaults(node[name], value)


def _add_reasoning(cfg: CN) -> None:
    _set_defaults(
        cfg.MODEL,
        {
            # Names in SIDE_CRITERION_REGISTRY: losses that models "Concept..." add to their own.
            "SIDE_CRITERIA": ["ConceptSupervision"],
            "SGR": {
                # A name in REASONING_REGISTRY.
                "NAME": "SemanticGlobalReasoning",
                # The registered backbone under MODEL.BACKBONE.NAME "build_sgr_backbone".
                "BACKBONE_NAME": "build_resnet_backbone",
                # Each of these backbone outputs gets a reasoning module; the paper's is the last.
                "IN_FEATURES": ["res5"],
                # K, the number of concepts (Sec. 3.1).
                "NUM_CONCEPTS": 512,
                # D, the channels of a token; a multiple of 4 and of NUM_HEADS.
                "TOKEN_DIM": 512,
                # "transformer" (Sec. 3.2) or "graph" (Table 4, "w graph"), which learns far sooner
                # to use context that the backbone does not see (docs/results.md).
                "TOKEN_MIXER": "transformer",
                "NUM_LAYERS": 2,
                "NUM_HEADS": 8,
                "DIM_FEEDFORWARD": 2048,
                "DROPOUT": 0.1,
                # Eq. 3: the "sum" over the cells, as in the paper, or the "mean" (sum divided by
                # the region's mass). On Shapes, both give the same results (docs/ablations.md).
                "TOKEN_POOLING": "sum",
                # Whether a layer norm gives all tokens one scale before the reasoning. Without it,
                # as in the paper, the first attention goes to the largest regions nearly alone.
                "TOKEN_NORM": False,
                # Position embeddings of the cells (Eq. 1), and of the regions' centroids (Eq. 4).
                "XY_EMBEDDING": True,
                "CENTROID_EMBEDDING": True,
                # Whether the concept losses alone train the regions. In the paper (False) the main
                # loss does so too. With SUPERVISION.WEIGHT 0 and True, nothing trains them.
                "DETACH_REGIONS": False,
                # Whether a batch norm follows the back-projection, as in GloRe. It is synchronised
                # if SEM_SEG_HEAD.NORM is "SyncBN". The paper has none.
                "BATCH_NORM": False,
                # Whether the module starts as the identity, so that it does not change a pretrained
                # model.
                "INIT_AS_IDENTITY": False,
                # sigmoid(bias) of the concept convolution before the training.
                "CONCEPT_PRIOR": 0.01,
                "SUPERVISION": {
                    # beta in Eq. 7. With 0 there are no concept losses, and no components are made.
                    "WEIGHT": 0.25,
                    # Weights of the three terms of Eq. 6: 1, rho and gamma. The first two also
                    # weight the terms of the matching cost (Eq. 5).
                    "FOCAL_WEIGHT": 1.0,
                    "DICE_WEIGHT": 1.0,
                    "COSINE_WEIGHT": 1.0,
                    "FOCAL_ALPHA": 0.25,
                    "FOCAL_GAMMA": 2.0,
                    # L, the largest number of concepts that are matched in an image (Sec. 3.3); at
                    # most NUM_CONCEPTS.
                    "MAX_ACTIVE": 64,
                    # How the regions of a component unite: "sum" (Eq. 6) or "noisy_or", which is a
                    # probability. On Shapes, both give the same results (docs/ablations.md).
                    "UNION": "noisy_or",
                },
            },
        },
    )


def _add_speed(cfg: CN) -> None:
    # Convolutions on maps in the order N, H, W, C in memory. On a CPU, depthwise ones are faster in
    # it in float32 on large batches, and slower in bfloat16 (docs/benchmarks.md). PyTorch's batch
    # norms are less exact in it there: a step's gradient of EfficientNet-Lite0 is off by 0.8 % of
    # its norm in float32, and by 0.03 % in the other order.
    _set_defaults(cfg.MODEL, {"CHANNELS_LAST": False})
    # Whether torch.compile makes kernels of backbone, pixel decoder and reasoning modules in the
    # first iterations of a training. Evaluations, predictions and exports run without.
    _set_defaults(cfg.MODEL, {"COMPILE": False})


def _add_swin(cfg: CN) -> None:
    _set_defaults(
        cfg.MODEL,
        {
            # The values of Swin-T.
            "SWIN": {
                # Side of the images of the pretraining, in pixels. Only absolute positions (APE)
                # depend on it.
                "PRETRAIN_IMG_SIZE": 224,
                "PATCH_SIZE": 4,
                # Channels of the first stage. Each further stage has twice as many.
                "EMBED_DIM": 96,
                "DEPTHS": [2, 2, 6, 2],
                "NUM_HEADS": [3, 6, 12, 24],
                # Side of an attention window, in patches.
                "WINDOW_SIZE": 7,
                "MLP_RATIO": 4.0,
                "QKV_BIAS": True,
                # Scale of the attention's logits; None means 1 / sqrt(channels of a head).
                "QK_SCALE": None,
                "DROP_RATE": 0.0,
                "ATTN_DROP_RATE": 0.0,
                # Stochastic depth: the probability of the last block. That of the first block is 0,
                # and it rises linearly between the two.
                "DROP_PATH_RATE": 0.3,
                "APE": False,
                "PATCH_NORM": True,
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
                # Whether to recompute activations in the backward pass, which saves memory.
                "USE_CHECKPOINT": False,
            }
        },
    )


def _add_timm(cfg: CN) -> None:
    _set_defaults(
        cfg.MODEL,
        {
            # Models of the library timm. Frozen stages are those of MODEL.BACKBONE.FREEZE_AT.
            "TIMM": {
                # A name of timm.list_models(); MODEL.WEIGHTS names its weights.
                "NAME": "resnet50",
                # "res2" is the feature at stride 4, and so on; "res1" at stride 2, if there is one.
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
                # The largest stride: 8, 16 or 32. Models that can dilate their last stages for it.
                "OUTPUT_STRIDE": 32,
                # Stochastic depth of the last block; 0 leaves the model's default.
                "DROP_PATH_RATE": 0.0,
                # Of batch norms: "FrozenBN", "SyncBN", or "BN" and "" for the model's own.
                "NORM": "",
            }
        },
    )
    if "OPTIONS" not in cfg.MODEL.TIMM:
        # Further arguments of timm.create_model, in a config file only.
        cfg.MODEL.TIMM.OPTIONS = CN(new_allowed=True)


def _add_mask_classification(cfg: CN) -> None:
    _set_defaults(
        cfg.MODEL,
        {
            "MASK_FORMER": {
                "DEEP_SUPERVISION": True,
                # Weights of the "no object" class, and of the terms of the loss.
                "NO_OBJECT_WEIGHT": 0.1,
                "CLASS_WEIGHT": 1.0,
                "DICE_WEIGHT": 1.0,
                "MASK_WEIGHT": 20.0,
                # The criterion (CRITERION_REGISTRY); "" for that of the meta-architecture.
                "CRITERION_NAME": "",
                # The transformer of the queries.
                "NHEADS": 8,
                "DROPOUT": 0.1,
                "DIM_FEEDFORWARD": 2048,
                "ENC_LAYERS": 0,
                # With "MaskedAttentionPredictor", the number of its layers plus 1. As in
                # Mask2Former, it also counts the prediction before the first layer.
                "DEC_LAYERS": 6,
                "PRE_NORM": False,
                "HIDDEN_DIM": 256,
                "NUM_OBJECT_QUERIES": 100,
                # The part that turns queries into classes and masks (PREDICTOR_REGISTRY):
                # "TransformerPredictor" (MaskFormer) or "MaskedAttentionPredictor" (Mask2Former).
                "TRANSFORMER_DECODER_NAME": "TransformerPredictor",
                # What the queries read: a feature's name, or a stage of the pixel decoder
                # ("transformer_encoder", "pixel_embedding", "multi_scale_pixel_decoder").
                "TRANSFORMER_IN_FEATURE": "res5",
                "ENFORCE_INPUT_PROJ": False,
                "SIZE_DIVISIBILITY": 32,
                # Mask2Former's losses compare TRAIN_NUM_POINTS points of each mask. They are chosen
                # from OVERSAMPLE_RATIO times as many: the share IMPORTANCE_SAMPLE_RATIO of them
                # where the prediction is least certain, the others at random.
                "TRAIN_NUM_POINTS": 12544,
                "OVERSAMPLE_RATIO": 3.0,
                "IMPORTANCE_SAMPLE_RATIO": 0.75,
                "TEST": {
                    "SEMANTIC_ON": True,
                    # What "sem_seg" holds: "scores" (C, H, W), as in Detectron2, or "labels"
                    # (H, W), the class with the best score, which needs C times less memory.
                    "SEMANTIC_OUTPUT": "scores",
                    "PANOPTIC_ON": False,
                    # How masks become segments (PANOPTIC_MERGE_REGISTRY): "merge_by_pixel"
                    # (MaskFormer), "merge_by_pixel_within_masks" (Mask2Former), or "" for that of
                    # the meta-architecture.
                    "PANOPTIC_MERGE": "",
                    "INSTANCE_ON": False,
                    # Panoptic results leave out queries with a lower score than
                    # OBJECT_MASK_THRESHOLD. They leave out segments of which a smaller share than
                    # OVERLAP_THRESHOLD remains after overlaps are resolved.
                    "OBJECT_MASK_THRESHOLD": 0.0,
                    "OVERLAP_THRESHOLD": 0.0,
                    "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
                },
            }
        },
    )
    _set_defaults(
        cfg.MODEL.SEM_SEG_HEAD,
        {
            # Channels of the mask features, and the pixel decoder (SEM_SEG_HEADS_REGISTRY).
            "MASK_DIM": 256,
            "PIXEL_DECODER_NAME": "FPNPixelDecoder",
            # Layers of the pixel decoder's transformer; "DeformablePixelDecoder" needs at least 1.
            "TRANSFORMER_ENC_LAYERS": 0,
            # Deformable attention ("DeformablePixelDecoder"): the features that it encodes, its
            # sampling points per head and feature, and its heads.
            "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
            "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
            "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
        },
    )


def _add_per_pixel(cfg: CN) -> None:
    if "ASPP_CHANNELS" not in cfg.MODEL.SEM_SEG_HEAD:
        # The keys of Detectron2's DeepLabV3 and dilated ResNet. LOSS_TYPE is a name in
        # PIXEL_LOSS_REGISTRY. The paper's loss is the cross entropy of all pixels;
        # "hard_pixel_mining" takes the fifth of the pixels with the largest cross entropy.
        add_deeplab_config(cfg)
        cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"
    _set_defaults(
        cfg.MODEL.SEM_SEG_HEAD,
        {
            # Whether the head ("FCNHead") has the reasoning module of MODEL.SGR. It stands after
            # the 3x3 convolution, where features have a quarter of the backbone's channels.
            "REASONING": False,
            # What turns features into logits (PIXEL_CLASSIFIER_REGISTRY).
            "CLASSIFIER_NAME": "LinearClassifier",
            # Dropout before the classifier.
            "DROPOUT": 0.1,
            # UperNet: the sides of the grids of its pyramid pooling.
            "POOL_SCALES": [1, 2, 3, 6],
            # A second classifier, for training only: the feature that it reads ("" for no such
            # classifier), its channels, and the weight of its loss.
            "AUX_IN_FEATURE": "",
            "AUX_CHANNELS": 256,
            "AUX_LOSS_WEIGHT": 0.4,
        },
    )


def _add_data(cfg: CN) -> None:
    _set_defaults(
        cfg.INPUT,
        {
            # Images of 16 bits per value: "refuse" is an error, "full_range" maps 0 to 65535 to
            # bytes, and "percentile" maps the middle 99 % of the values of each image.
            "SIXTEEN_BIT": "refuse",
            # A name in sgr.data.mappers.MAPPER_REGISTRY.
            "DATASET_MAPPER_NAME": "mask_former_semantic_concept",
            "COLOR_AUG_SSD": False,
            # Large-scale jittering (mappers "*_lsj_concept"): the side of the square crop, in
            # pixels, and the range of the image's scale relative to it.
            "IMAGE_SIZE": 1024,
            "MIN_SCALE": 0.1,
            "MAX_SCALE": 2.0,
            # Training images are padded to a multiple of this many pixels; -1 does not pad them.
            "SIZE_DIVISIBILITY": -1,
            # Connected components (Sec. 3.3, footnote 2; Fig. A).
            "COMPONENTS": {
                # Components smaller than this share of the largest one in the crop are dropped.
                "MIN_AREA_RATIO": 0.05,
                # Side of the square of the morphological opening, in pixels; 1 leaves it out.
                "KERNEL_SIZE": 3,
            },
        },
    )
    _set_defaults(
        cfg.INPUT.CROP,
        {
            # Where the crop is taken: "random" (public code) or "center" (Sec. A.1).
            "POSITION": "random",
            # A crop is drawn again if one class covers more than this share; 1 accepts every crop.
            "SINGLE_CATEGORY_MAX_AREA": 1.0,
        },
    )
    # YAML files that describe datasets (docs/your_data.md), which are registered when the config is
    # loaded. MODEL.SEM_SEG_HEAD.NUM_CLASSES 0 then becomes the number of their classes.
    _set_defaults(cfg.DATASETS, {"FILES": []})


def _add_solver(cfg: CN) -> None:
    _set_defaults(
        cfg.SOLVER,
        {
            # "SGD" or "ADAMW".
            "OPTIMIZER": "ADAMW",
            # Learning rate of the backbone relative to BASE_LR. Its reasoning modules have BASE_LR.
            "BACKBONE_MULTIPLIER": 0.1,
            # Learning rate of SGR's transformer (or graph) relative to BASE_LR. A transformer that
            # learns fast may give all tokens the same value: see "Rate" in docs/design.md.
            "TOKEN_MIXER_MULTIPLIER": 1.0,
            # Weight decay of embeddings (queries, relative positions). For norms, there is
            # Detectron2's WEIGHT_DECAY_NORM.
            "WEIGHT_DECAY_EMBED": 0.0,
            # With LR_SCHEDULER_NAME "WarmupPolyLR" the rate is BASE_LR * (1 - t)^POLY_LR_POWER, and
            # at least BASE_LR * POLY_LR_CONSTANT_ENDING. t rises from 0 to 1.
            "POLY_LR_POWER": 0.9,
            "POLY_LR_CONSTANT_ENDING": 0.0,
        },
    )


def _add_test(cfg: CN) -> None:
    _set_defaults(
        cfg.TEST,
        {
            "TOKENS": {
                # Whether to report S_C and D_C and, with annotations of instances, S_I and D_I
                # (Sec. 4).
                "ENABLED": True,
            },
            "BOUNDARY_IOU": {
                # Whether to measure boundary IoU (Cheng et al., CVPR 2021) beside mIoU.
                "ENABLED": False,
                # Pixels nearer to a contour than this share of the image's diagonal count.
                "DILATION_RATIO": 0.02,
            },
            # Before a training, this many images of each test set are read and checked with their
            # ground truth, spread evenly over the set: all of a small set. 0 reads none.
            "CHECK_FILES": 200,
            # At each evaluation of a training, this many images of each test set are drawn for
            # TensorBoard: labels, prediction, errors and the most used regions. 0 draws none.
            "PICTURES": 2,
            # A metric in metrics.json, such as "sem_seg/mIoU": each evaluation of a training that
            # is better than all before leaves its weights in model_best.pth. "" keeps none.
            "BEST_METRIC": "",
            # Names in EVALUATOR_REGISTRY of sgr.evaluation.build: evaluators that are added to
            # those of the dataset.
            "EVALUATORS": [],
            # Multi-scale testing. Detectron2 has ENABLED, MIN_SIZES, MAX_SIZE and FLIP.
            "AUG": {
                # The scales of semantic segmentation (Sec. A.1), relative to INPUT.MIN_SIZE_TEST
                # and MAX_SIZE_TEST, or to the square of CENTER_CROP_SIZE. If there are none, and
                # for detectors, MIN_SIZES and MAX_SIZE count, in pixels.
                "SCALES": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
            },
            # Tests look at a square of this side, in pixels: the shorter side of the image is
            # resized to it, and the centre is cut out (Sec. A.1, on ADE20K and COCO-Stuff).
            # INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST then have no effect. 0 tests whole images. Tools
            # that draw always look at whole images.
            "CENTER_CROP_SIZE": 0,
            # Semantic segmentation window by window, at one scale or several: the (height, width)
            # of a window, and the (rows, columns) from one to the next, in pixels of the network's
            # input.
            "SLIDING_WINDOW": {
                "ENABLED": False,
                "SIZE": [768, 768],
                "STRIDE": [512, 512],
            },
        },
    )
