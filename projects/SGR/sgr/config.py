"""Every configuration key that the project adds to Detectron2's, with its unit and its source.

"Sec.", "Eq." and "Table" refer to the SGR paper. Keys under ``MODEL.MASK_FORMER``,
``MODEL.SEM_SEG_HEAD``, ``MODEL.SWIN`` and ``SOLVER`` carry the names that the users of MaskFormer
and Mask2Former know.
"""

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

__all__ = ["add_sgr_config"]


def add_sgr_config(cfg: CN) -> None:
    """Add the keys of SGR, Swin, timm, mask classification, data, solver and evaluators to ``cfg``.

    Args:
        cfg: a Detectron2 config, changed in place. Keys that exist already (say, because the
            public MaskFormer has been here before) keep their values.
    """
    _add_reasoning(cfg)
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
            # Names in SIDE_CRITERION_REGISTRY: what models "Concept..." learn beside their losses.
            "SIDE_CRITERIA": ["ConceptSupervision"],
            "SGR": {
                # A name in REASONING_REGISTRY.
                "NAME": "SemanticGlobalReasoning",
                # The registered backbone under MODEL.BACKBONE.NAME "build_sgr_backbone".
                "BACKBONE_NAME": "build_resnet_backbone",
                # Backbone outputs that get a reasoning module each; the paper uses the last one.
                "IN_FEATURES": ["res5"],
                # K, concepts learned over the dataset (Sec. 3.1).
                "NUM_CONCEPTS": 512,
                # D, channels of a token; a multiple of 4 and of NUM_HEADS.
                "TOKEN_DIM": 512,
                # "transformer" (Sec. 3.2) or "graph" (Table 4, "w graph").
                "TOKEN_MIXER": "transformer",
                "NUM_LAYERS": 2,
                "NUM_HEADS": 8,
                "DIM_FEEDFORWARD": 2048,
                "DROPOUT": 0.1,
                # Eq. 3: "sum" over the cells (literal), or "mean" (divided by the region's mass).
                # Neither is better on Shapes (docs/results.md), so the literal one.
                "TOKEN_POOLING": "sum",
                # Position embeddings of the cells (Eq. 1) and of the regions' centroids (Eq. 4).
                "XY_EMBEDDING": True,
                "CENTROID_EMBEDDING": True,
                # Start as the identity, so that a pretrained model is not disturbed.
                "INIT_AS_IDENTITY": False,
                # What sigmoid(bias) of the concept convolution is at the start.
                "CONCEPT_PRIOR": 0.01,
                "SUPERVISION": {
                    # beta in Eq. 7; 0 trains without concept losses and without components.
                    "WEIGHT": 0.25,
                    # Weights of the three terms of Eq. 6: 1, rho and gamma. The first two are the
                    # terms of the matching cost (Eq. 5) too.
                    "FOCAL_WEIGHT": 1.0,
                    "DICE_WEIGHT": 1.0,
                    "COSINE_WEIGHT": 1.0,
                    "FOCAL_ALPHA": 0.25,
                    "FOCAL_GAMMA": 2.0,
                    # L, concepts matched per image at most (Sec. 3.3); at most NUM_CONCEPTS.
                    "MAX_ACTIVE": 64,
                    # How regions of one component unite: "sum" (Eq. 6) or "noisy_or". Neither is
                    # better on Shapes (docs/results.md); the latter is a probability.
                    "UNION": "noisy_or",
                },
            },
        },
    )


def _add_swin(cfg: CN) -> None:
    _set_defaults(
        cfg.MODEL,
        {
            # The values of Swin-T.
            "SWIN": {
                # Side of the images of the pretraining, pixels; only absolute positions (APE)
                # depend on it.
                "PRETRAIN_IMG_SIZE": 224,
                "PATCH_SIZE": 4,
                # Channels of the first stage; they double from stage to stage.
                "EMBED_DIM": 96,
                "DEPTHS": [2, 2, 6, 2],
                "NUM_HEADS": [3, 6, 12, 24],
                # Side of an attention window, patches.
                "WINDOW_SIZE": 7,
                "MLP_RATIO": 4.0,
                "QKV_BIAS": True,
                # Scale of the attention's logits; None stands for 1 / sqrt(channels of a head).
                "QK_SCALE": None,
                "DROP_RATE": 0.0,
                "ATTN_DROP_RATE": 0.0,
                # Stochastic depth: probability for the last block, rising from 0 at the first.
                "DROP_PATH_RATE": 0.3,
                "APE": False,
                "PATCH_NORM": True,
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
                # Recompute the blocks' activations in the backward pass instead of keeping them.
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
                # A name of timm.list_models(), or "hf-hub:..."; MODEL.WEIGHTS names its weights.
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
                # Weight of the "no object" class, and of the terms of the loss.
                "NO_OBJECT_WEIGHT": 0.1,
                "CLASS_WEIGHT": 1.0,
                "DICE_WEIGHT": 1.0,
                "MASK_WEIGHT": 20.0,
                # The criterion (CRITERION_REGISTRY); "" for that of the meta-architecture.
                "CRITERION_NAME": "",
                # The transformer between the queries and the last feature map.
                "NHEADS": 8,
                "DROPOUT": 0.1,
                "DIM_FEEDFORWARD": 2048,
                "ENC_LAYERS": 0,
                # With "MaskedAttentionPredictor" one more than its layers: it counts the
                # prediction before the first of them, as in Mask2Former.
                "DEC_LAYERS": 6,
                "PRE_NORM": False,
                "HIDDEN_DIM": 256,
                "NUM_OBJECT_QUERIES": 100,
                # What turns queries into classes and masks (PREDICTOR_REGISTRY):
                # "TransformerPredictor" (MaskFormer) or "MaskedAttentionPredictor" (Mask2Former).
                "TRANSFORMER_DECODER_NAME": "TransformerPredictor",
                # A feature name, or a stage of the pixel decoder ("transformer_encoder",
                # "pixel_embedding", "multi_scale_pixel_decoder").
                "TRANSFORMER_IN_FEATURE": "res5",
                "ENFORCE_INPUT_PROJ": False,
                "SIZE_DIVISIBILITY": 32,
                # Mask2Former's losses look at this many points of each mask, picked out of
                # OVERSAMPLE_RATIO times as many: this share where the prediction is least certain,
                # the rest at random.
                "TRAIN_NUM_POINTS": 12544,
                "OVERSAMPLE_RATIO": 3.0,
                "IMPORTANCE_SAMPLE_RATIO": 0.75,
                "TEST": {
                    "SEMANTIC_ON": True,
                    # What "sem_seg" is: "scores" (C, H, W), as Detectron2 has it, or "labels"
                    # (H, W), their best class, which takes a C-th of the memory.
                    "SEMANTIC_OUTPUT": "scores",
                    "PANOPTIC_ON": False,
                    # How masks become segments (PANOPTIC_MERGE_REGISTRY): "merge_by_pixel"
                    # (MaskFormer), "merge_by_pixel_within_masks" (Mask2Former), or "" for that of
                    # the meta-architecture.
                    "PANOPTIC_MERGE": "",
                    "INSTANCE_ON": False,
                    # Panoptic: queries below this score, and segments of which less than this
                    # share is left after overlaps are resolved, are dropped.
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
            # Of the pixel decoder's transformer; "DeformablePixelDecoder" needs at least 1.
            "TRANSFORMER_ENC_LAYERS": 0,
            # Deformable attention over several strides ("DeformablePixelDecoder"): the features
            # that it encodes, its sampling points per head and stride, and its heads.
            "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
            "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
            "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
        },
    )


def _add_per_pixel(cfg: CN) -> None:
    if "ASPP_CHANNELS" not in cfg.MODEL.SEM_SEG_HEAD:
        # DeepLabV3 and the dilated ResNet are Detectron2's. LOSS_TYPE is a name in
        # PIXEL_LOSS_REGISTRY. The paper's loss is cross entropy, of all pixels;
        # "hard_pixel_mining" keeps the fifth of them with the largest.
        add_deeplab_config(cfg)
        cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"
    _set_defaults(
        cfg.MODEL.SEM_SEG_HEAD,
        {
            # Put the reasoning module of MODEL.SGR into the head ("FCNHead"): behind its 3x3
            # convolution, where features have a quarter of the backbone's channels.
            "REASONING": False,
            # What turns features into logits (PIXEL_CLASSIFIER_REGISTRY).
            "CLASSIFIER_NAME": "LinearClassifier",
            # Dropout before the classifier.
            "DROPOUT": 0.1,
            # UperNet: sides of the grids of its pyramid pooling.
            "POOL_SCALES": [1, 2, 3, 6],
            # A second classifier on an inner feature ("" for none), for training only.
            "AUX_IN_FEATURE": "",
            "AUX_CHANNELS": 256,
            "AUX_LOSS_WEIGHT": 0.4,
        },
    )


def _add_data(cfg: CN) -> None:
    _set_defaults(
        cfg.INPUT,
        {
            # A name in sgr.data.mappers.MAPPER_REGISTRY.
            "DATASET_MAPPER_NAME": "mask_former_semantic_concept",
            "COLOR_AUG_SSD": False,
            # Large-scale jittering (mappers "*_lsj_concept"): side of the square crop, pixels, and
            # the range of the scale relative to it.
            "IMAGE_SIZE": 1024,
            "MIN_SCALE": 0.1,
            "MAX_SCALE": 2.0,
            # Pad training images to a multiple of this many pixels; -1 leaves them.
            "SIZE_DIVISIBILITY": -1,
            # Connected components (Sec. 3.3, footnote 2; Fig. A).
            "COMPONENTS": {
                # Drop components smaller than this share of the largest one in the crop.
                "MIN_AREA_RATIO": 0.05,
                # Side of the square of the morphological opening, pixels; 1 leaves it out.
                "KERNEL_SIZE": 3,
            },
        },
    )
    _set_defaults(
        cfg.INPUT.CROP,
        {
            # Where the crop is taken: "random" (the public code) or "center" (Sec. A.1).
            "POSITION": "random",
            # Crops where one class covers more than this share are drawn again; 1 switches it off.
            "SINGLE_CATEGORY_MAX_AREA": 1.0,
        },
    )
    # YAML files that describe datasets of one's own (docs/your_data.md), registered before anything
    # else. With MODEL.SEM_SEG_HEAD.NUM_CLASSES 0, the datasets' number of classes is put there.
    _set_defaults(cfg.DATASETS, {"FILES": []})


def _add_solver(cfg: CN) -> None:
    _set_defaults(
        cfg.SOLVER,
        {
            # "SGD" or "ADAMW".
            "OPTIMIZER": "ADAMW",
            # Learning rate of the backbone, without its reasoning modules, relative to BASE_LR.
            "BACKBONE_MULTIPLIER": 0.1,
            # Weight decay of embeddings (queries, relative positions); norms have Detectron2's key.
            "WEIGHT_DECAY_EMBED": 0.0,
            # With LR_SCHEDULER_NAME "WarmupPolyLR": (1 - t)^POWER, and a floor relative to BASE_LR.
            "POLY_LR_POWER": 0.9,
            "POLY_LR_CONSTANT_ENDING": 0.0,
        },
    )


def _add_test(cfg: CN) -> None:
    _set_defaults(
        cfg.TEST,
        {
            "TOKENS": {
                # Report S_C, D_C and, where there are instance annotations, S_I, D_I (Sec. 4).
                "ENABLED": True,
            },
            # Further evaluators, beside those that a dataset has: names in EVALUATOR_REGISTRY of
            # sgr.evaluation.build.
            "EVALUATORS": [],
            # Multi-scale testing, beside Detectron2's ENABLED, MIN_SIZES, MAX_SIZE and FLIP.
            "AUG": {
                # Of semantic segmentation (Sec. A.1), relative to INPUT.MIN_SIZE_TEST and
                # MAX_SIZE_TEST; where it is empty, MIN_SIZES and MAX_SIZE count, in pixels. They
                # always do for detectors. With CENTER_CROP_SIZE, relative to the square.
                "SCALES": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
            },
            # Side, pixels, of the square that images are tested on: their shorter side is resized
            # to it, and the centre cut out (Sec. A.1, on ADE20K and COCO-Stuff). 0: whole images.
            # INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are then of no effect; tools that draw look at
            # whole images all the same.
            "CENTER_CROP_SIZE": 0,
            # Semantic segmentation window by window, at one scale or several: (height, width) of a
            # window and (rows, columns) between two, pixels of the network's input.
            "SLIDING_WINDOW": {
                "ENABLED": False,
                "SIZE": [768, 768],
                "STRIDE": [512, 512],
            },
        },
    )
