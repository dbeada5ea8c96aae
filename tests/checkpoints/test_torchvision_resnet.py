"""Torchvision's ResNets in Detectron2's, beside torchvision itself."""

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from sgr.checkpoints.checkpointer import SafeCheckpointer
from tiny_detector import tiny_detector_config


def config(depth, norm="FrozenBN", **more):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in more.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


class Segmentor(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        self.head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1))


def randomize_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


@torch.no_grad()
def features(resnet, images):
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    outputs = {}
    for stage in range(1, 5):
        x = outputs[f"res{stage + 1}"] = resnet.get_submodule(f"layer{stage}")(x)
    return outputs


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_those_of_torchvision(depth, norm, tmp_path, caplog):
    classifier = randomize_statistics(getattr(torchvision.models, f"resnet{depth}")())
    torch.save(classifier.state_dict(), tmp_path / "resnet-12345678.pth")
    model = Segmentor(config(depth, norm)).eval()
    with caplog.at_level("INFO"):
        SafeCheckpointer(model).load(str(tmp_path / "resnet-12345678.pth"))
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        outputs = model.backbone(images)
    for name, maps in features(classifier, images).items():
        torch.testing.assert_close(outputs[name], maps, rtol=1e-4, atol=1e-4)
    assert "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in caplog.text
    assert "trained with MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in caplog.text  # d2's is BGR
    assert "STRIDE_IN_1X1 is True" not in caplog.text and "unexpected" not in caplog.text


def test_strides_in_1x1_are_warned_of(tmp_path, caplog):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    SafeCheckpointer(Segmentor(config(50, STRIDE_IN_1X1=True))).load(str(tmp_path / "resnet50.pth"))
    assert "STRIDE_IN_1X1 is True; torchvision's weights were trained with False" in caplog.text


def test_in_a_detector(tmp_path, caplog):
    """The stages are placed below a pyramid; the format, which a detector knows, is compared."""
    classifier = randomize_statistics(torchvision.models.resnet18())
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    cfg = tiny_detector_config(
        MODEL__RESNETS__DEPTH=18,
        MODEL__RESNETS__STEM_OUT_CHANNELS=64,
        MODEL__RESNETS__RES2_OUT_CHANNELS=64,
        INPUT__FORMAT="BGR",
    )
    model = build_model(cfg)
    SafeCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    stem = model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(stem, classifier.conv1.weight)
    assert "trained with INPUT.FORMAT RGB, the model has BGR" in caplog.text


def test_another_model_is_left_alone(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    model = torchvision.models.resnet18()
    SafeCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.fc.weight, torch.load(tmp_path / "resnet18.pth")["fc.weight"])
