"""The backbone against timm's ResNet-D, which is not dilated in the same way."""

import pytest
import torch
from torch import nn

from hssn import V1dResNet
from sgr.checkpoints.checkpointer import SafeCheckpointer

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def public():
    torch.manual_seed(0)
    return timm.create_model("resnet50d", output_stride=8).eval()


@pytest.fixture(scope="module")
def file(public, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50d.pth"
    torch.save(public.state_dict(), path)
    return str(path)


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = V1dResNet(50, norm="BN", **options)


@pytest.mark.parametrize("output_stride", [8, 32])
def test_features_are_those_of_timm(output_stride, file, caplog):
    model = Model(output_stride=output_stride).eval()
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(file)
    assert not caplog.text
    net = timm.create_model("resnet50d", output_stride=output_stride).eval()
    net.load_state_dict(torch.load(file, weights_only=True))
    if output_stride == 8:  # timm averages there, too, where nothing is halved
        for stage in (net.layer3, net.layer4):
            stage[0].downsample[0] = nn.Identity()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = model.backbone(images)
        expected = net.forward_intermediates(images, intermediates_only=True)[1:]
    shapes = model.backbone.output_shape()
    for (name, maps), wanted in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(maps, wanted, atol=1e-4, rtol=1e-4)
        assert maps.shape[1] == shapes[name].channels
        assert 64 // maps.shape[2] == shapes[name].stride
    assert shapes["res5"].stride == output_stride


def test_freezing(caplog):
    with caplog.at_level("INFO"):
        backbone = V1dResNet(50, norm="BN", freeze_at=2, out_features=["res3"])
    assert "Not trained in ResNet-50 V1d are the stem, res2" in caplog.text
    frozen = {
        name.partition(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad
    }
    assert frozen == {"stem", "layer1"} and not backbone.train().layer1.training
    with torch.no_grad():
        assert list(backbone(torch.zeros(1, 3, 32, 32))) == ["res3"]


def test_mistakes():
    for options, message in (
        ({"depth": 34}, "DEPTH is 34; V1dResNet has 50, 101"),
        ({"output_stride": 4}, "is 4; V1dResNet has 8, 16, 32"),
        ({"out_features": ["res1"]}, r"OUT_FEATURES is \['res1'\]"),
        ({"out_features": []}, r"OUT_FEATURES is \[\]"),
        ({"norm": ""}, "MODEL.RESNETS.NORM is ''"),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            V1dResNet(**options)
