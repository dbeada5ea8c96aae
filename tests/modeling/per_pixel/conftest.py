import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from sgr.config import add_sgr_config


@pytest.fixture
def input_shape():
    return {
        "res2": ShapeSpec(channels=8, stride=4),
        "res3": ShapeSpec(channels=12, stride=8),
        "res4": ShapeSpec(channels=16, stride=16),
        "res5": ShapeSpec(channels=24, stride=32),
    }


@pytest.fixture
def features(input_shape):
    """Of two images of 61 x 94 pixels, whose sides no stride divides."""
    return {
        name: torch.randn(2, shape.channels, -(-61 // shape.stride), -(-94 // shape.stride))
        for name, shape in input_shape.items()
    }


@pytest.fixture
def labels():
    labels = torch.randint(0, 5, (2, 61, 94))
    labels[0, :20] = 255
    return labels


@pytest.fixture
def cfg():
    """A config of five classes, and a small reasoning module."""
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    head = cfg.MODEL.SEM_SEG_HEAD
    head.IN_FEATURES = ["res3"]
    head.NUM_CLASSES = 5
    head.CONVS_DIM = 16
    head.NORM = "BN"
    cfg.MODEL.SGR.NUM_CONCEPTS = 6
    cfg.MODEL.SGR.TOKEN_DIM = 8
    cfg.MODEL.SGR.NUM_HEADS = 2
    cfg.MODEL.SGR.DIM_FEEDFORWARD = 16
    cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE = 4
    return cfg
