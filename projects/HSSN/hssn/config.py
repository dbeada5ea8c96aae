"""Every config key of HSSN, with its unit and its source. "Sec." and "Eq." are the paper's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_hssn_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.HSSN``; ``sgr`` calls it before it reads a config file."""
    if "HSSN" in cfg.MODEL:
        return
    cfg.MODEL.HSSN = CfgNode()
    # The tree of the classes, as a list of [{superclass: children}, class, ...]. An empty list
    # takes that of the data: ``class_tree`` in the metadata of the first dataset that has one.
    cfg.MODEL.HSSN.TREE = []
    # The loss of the nodes' scores of MODEL.SEM_SEG_HEAD.LOSS_TYPE "hssn": "tree_min" (Eq. 4, 5),
    # "focal_tree_min" (Eq. 6) or "bce", which does not use the tree.
    cfg.MODEL.HSSN.LOSS = "tree_min"
    # Weight of this loss. The public code for Cityscapes has 5; the paper names none.
    cfg.MODEL.HSSN.WEIGHT = 5.0
    # Exponent of the factors of "focal_tree_min" (Eq. 6).
    cfg.MODEL.HSSN.GAMMA = 2.0
    # Weight of the cross entropy of each level (public code); 0 leaves it out.
    cfg.MODEL.HSSN.CE_WEIGHT = 1.0
    # Weight of the region mutual information (public code for persons, 0.5); 0 leaves it out.
    cfg.MODEL.HSSN.RMI_WEIGHT = 0.0
    # What is summed up along the path of a class: "logits" (public code) or "scores" (paper).
    cfg.MODEL.HSSN.PATH_SCORE = "logits"
    # Weight of "TreeTripletSupervision" (MODEL.SIDE_CRITERIA) at the end of the training. It rises
    # along a cosine from 0; 0 leaves the loss out.
    cfg.MODEL.HSSN.TRIPLET_WEIGHT = 0.5
    # Margin of the triplets, a cosine distance; -1.0 computes it from the tree, which gives 0.35 in
    # a tree of two levels. The public code has 0.6.
    cfg.MODEL.HSSN.TRIPLET_MARGIN = -1.0
    # At most this many triplets of each class in the images of a worker.
    cfg.MODEL.HSSN.TRIPLET_SAMPLES = 200
    # The backbone's feature that is projected; "" for the coarsest one that the head reads
    # (MODEL.SEM_SEG_HEAD.IN_FEATURES), or that there is if the head reads none of the backbone.
    cfg.MODEL.HSSN.TRIPLET_IN_FEATURE = ""
    # Channels of an embedding.
    cfg.MODEL.HSSN.PROJECTION_DIM = 256
