import pytest
import torch
from detectron2.projects.deeplab import DeepLabV3Head

from sgr.modeling.per_pixel import AnySizeDeepLabV3Head


@pytest.fixture
def cfg(cfg):
    head = cfg.MODEL.SEM_SEG_HEAD
    head.ASPP_CHANNELS = head.CONVS_DIM = 16
    head.ASPP_DILATIONS = [2, 4, 6]
    head.ASPP_DROPOUT = 0.0
    head.COMMON_STRIDE = 8
    return cfg


@pytest.mark.parametrize("separable", [False, True])
def test_is_detectron2s(cfg, separable, input_shape, features):
    cfg.MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV = separable
    theirs, ours = DeepLabV3Head(cfg, input_shape), AnySizeDeepLabV3Head(cfg, input_shape)
    ours.load_state_dict(theirs.state_dict())
    labels = torch.randint(0, 5, (2, 64, 96))  # of a size that theirs can train on
    torch.testing.assert_close(ours(features, labels), theirs(features, labels))
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


def test_what_was_trained_on_crops_takes_any_size(cfg, input_shape, features):
    """Detectron2's takes multiples of the crop only."""
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [48, 48]
    theirs = DeepLabV3Head(cfg, input_shape).eval()
    with pytest.raises(ValueError, match="must be divisible by the shape of inputs"):
        theirs(features)
    ours = AnySizeDeepLabV3Head(cfg, input_shape).eval()
    ours.load_state_dict(theirs.state_dict())
    crop = {"res3": features["res3"][..., :6, :6]}
    torch.testing.assert_close(ours(crop), theirs(crop))
    assert ours(features)[0].shape == (2, 5, 64, 96)


def test_three_dilations(cfg, input_shape):
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [6, 12]
    with pytest.raises(ValueError, match=r"ASPP_DILATIONS. must be three, got \[6, 12\]"):
        AnySizeDeepLabV3Head(cfg, input_shape)
