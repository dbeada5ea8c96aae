"""Every config key of ProtoSeg, with its unit and its source.

"Public" is the code that the authors have published. The paper is "Rethinking Semantic
Segmentation: A Prototype View" (Zhou et al., CVPR 2022).
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_protoseg_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.PROTOSEG``; ``sgr`` calls it before it reads a config file."""
    if "PROTOSEG" in cfg.MODEL:
        return
    cfg.MODEL.PROTOSEG = CfgNode()
    # M, the prototypes of each class.
    cfg.MODEL.PROTOSEG.NUM_PROTOTYPES = 10
    # Share of a prototype that stays in a step, at least 0 and below 1. The public 0.999 is for
    # 80,000 steps and more; a short training needs less.
    cfg.MODEL.PROTOSEG.MOMENTUM = 0.999
    # Clustering: cosines are divided by SINKHORN_EPSILON, and SINKHORN_ITERATIONS times all
    # prototypes of a class get equal shares of its cells.
    cfg.MODEL.PROTOSEG.SINKHORN_EPSILON = 0.05
    cfg.MODEL.PROTOSEG.SINKHORN_ITERATIONS = 3
    # Which prototype a cell moves: the one with the largest share of it ("argmax", the paper), or
    # that after Gumbel noise on the shares ("gumbel", public). The losses always take the first.
    cfg.MODEL.PROTOSEG.ASSIGNMENT = "argmax"
    # Weights of the losses of contrast and distance; and what divides the cosines of the first. The
    # public code does not divide them, which is 1.
    cfg.MODEL.PROTOSEG.CONTRAST_WEIGHT = 0.01
    cfg.MODEL.PROTOSEG.DISTANCE_WEIGHT = 0.001
    cfg.MODEL.PROTOSEG.TEMPERATURE = 1.0
    # "width" scales each row of the projected features to unit length, along the image's width, as
    # the public code does. Its checkpoints need it. "" does not.
    cfg.MODEL.PROTOSEG.PROJECTION_NORM = ""
