"""Every config key of SeMask, with its unit and its source. "Sec." and "Table" are the paper's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_semask_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.SEMASK`` and ``MIT``; ``sgr`` calls it before it reads a config file."""
    if "SEMASK" in cfg.MODEL:
        return
    cfg.MODEL.SEMASK = CfgNode()
    # For each stage, the side of the windows of the semantic attention in cells; 0 lets each cell
    # attend to the whole map. The paper has the transformer's windows in all stages; the released
    # models have the whole map in some, see the README.
    cfg.MODEL.SEMASK.WINDOW_SIZES = [7, 7, 7, 7]
    # N_S of each stage: semantic attentions in a row (Sec. 3.2).
    cfg.MODEL.SEMASK.NUM_BLOCKS = [1, 1, 1, 1]
    # Whether lambda (gamma) is learned, from 0. Otherwise it is 1 (Table 4).
    cfg.MODEL.SEMASK.LEARN_SCALE = True
    # Which semantic maps count as concept regions: some of "semantic2" (stride 4) to "semantic5".
    # Token metrics and pictures are of the coarsest of them, or, beside a reasoning module, under
    # the name of queries.
    cfg.MODEL.SEMASK.REGIONS = []
    # alpha, the weight of the semantic decoder's loss "loss_cate" (Sec. 3.3); 0 leaves it out.
    cfg.MODEL.SEMASK.LOSS_WEIGHT = 0.4
    # How the semantic decoder resizes its maps, and what its cross entropy is divided by:
    # "all_pixels" (ignored ones too) or "labelled_pixels". The released Semantic-FPN models have
    # False and "all_pixels", the mask classifiers True and "labelled_pixels".
    cfg.MODEL.SEMASK.ALIGN_CORNERS = False
    cfg.MODEL.SEMASK.LOSS_MEAN = "all_pixels"
    # MODEL.SEM_SEG_HEAD.LOSS_TYPE "semask_cross_entropy": how many pixels per image, those with the
    # largest loss, are learned from. 0 takes all.
    cfg.MODEL.SEMASK.HARD_PIXELS = 0
    # Mix Transformers ("build_mit_backbone"); the values of B4. Channels and blocks of the stages.
    cfg.MODEL.MIT = CfgNode()
    cfg.MODEL.MIT.EMBED_DIMS = [64, 128, 320, 512]
    cfg.MODEL.MIT.DEPTHS = [3, 8, 27, 3]
    # Stochastic depth of the last block, rising linearly from 0 at the first.
    cfg.MODEL.MIT.DROP_PATH_RATE = 0.1
