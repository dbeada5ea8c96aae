"""SGR in a model of Detectron2, trained by Detectron2's own DefaultTrainer.

Make the scenes first: python datasets/make_shapes.py
"""

import sys

from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer

import sgr
from sgr.data.mappers import build_mapper


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        # Detectron2's own mapper makes no components; ours is that of INPUT.DATASET_MAPPER_NAME.
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg))


def main(*options):
    cfg = get_cfg()
    sgr.add_sgr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ConceptSemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "output/default_trainer"
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.MIN_SIZE_TRAIN = "semantic_concept", (160,)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_sem_seg_train",), ()
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 40, *options])
    trainer = Trainer(cfg)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
