"""What the tests of several mappers share."""

import pytest
from detectron2.config import get_cfg

from sgr.config import add_sgr_config


@pytest.fixture
def small_crops():
    """(mapper, num_classes) -> a config with scales, crops and jitter of small images."""

    def build(mapper, num_classes):
        cfg = get_cfg()
        add_sgr_config(cfg)
        cfg.DATASETS.TRAIN = ()
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
        cfg.INPUT.DATASET_MAPPER_NAME = mapper
        cfg.INPUT.FORMAT = "RGB"
        cfg.INPUT.MIN_SIZE_TRAIN = (40, 60, 90)
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
        cfg.INPUT.CROP.ENABLED = True
        cfg.INPUT.CROP.TYPE = "absolute"
        cfg.INPUT.CROP.SIZE = (48, 48)
        cfg.INPUT.IMAGE_SIZE = 64
        return cfg

    return build
