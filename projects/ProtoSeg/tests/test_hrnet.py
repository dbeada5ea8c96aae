import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from protoseg import ConcatHead, PrototypeClassifier
from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import load_config


def public_head(reference):
    """The head of the fixture, with the public options."""
    config = reference.config

    def classifier(in_channels, num_outputs, stride):
        return PrototypeClassifier(
            in_channels,
            num_outputs,
            stride=stride,
            num_prototypes=config["num_prototypes"],
            momentum=config["gamma"],
            projection_norm="width",
        )

    shapes = {f"res{level + 2}": ShapeSpec(channels=3, stride=4 * 2**level) for level in range(4)}
    return ConcatHead(
        shapes,
        in_features=list(shapes),
        conv_dim=config["channels"],
        num_classes=config["num_classes"],
        classifier=classifier,
        norm="BN",
    )


@pytest.mark.parametrize("parallel", ["", "module."])
def test_public_checkpoint(reference, assert_near, tmp_path, caplog, parallel):
    """It fills the model without a difference, and gives the public scores."""
    model = nn.Module()
    model.sem_seg_head = head = public_head(reference)
    state = {f"{parallel}{name}": value for name, value in reference.state.items()}
    torch.save({"state_dict": state}, tmp_path / "public.pth")
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(str(tmp_path / "public.pth"))
    assert not caplog.text
    features = {f"res{level + 2}": reference.input[f"feature_{level}"] for level in range(4)}
    with torch.no_grad():
        scores = head.eval().predictor(head.decode(features)).logits
    assert_near(scores, reference.output["scores"])


def test_other_files_are_left_alone():
    """Also where a head of another kind has the public head's name, as with a linear classifier."""
    shapes = {"res2": ShapeSpec(channels=3, stride=4)}
    head = ConcatHead(shapes, in_features=["res2"], conv_dim=4, num_classes=2, norm="BN")
    for name in ("backbone.conv1.weight", "cls_head.weight", "cls_head.0.weight"):
        assert head.adapt_checkpoint("sem_seg_head.", {name: torch.ones(1)}) == {}


@pytest.fixture(scope="module")
def model():
    """A small HRNet: 18 channels and strides 4 to 32."""
    pytest.importorskip("timm")
    return build_model(
        load_config(
            "",
            [
                *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
                *("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
                *("MODEL.TIMM.NAME", "hrnet_w18_small", "MODEL.SEM_SEG_HEAD.NAME", "ConcatHead"),
                *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
                *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "MODEL.SEM_SEG_HEAD.NORM", "BN"),
                *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.PROTOSEG.NUM_PROTOTYPES", "2"),
                *("MODEL.SEM_SEG_HEAD.CLASSIFIER_NAME", "PrototypeClassifier"),
            ],
        )
    )


def test_features_are_those_of_the_branches(model):
    backbone = model.backbone
    shapes = {name: (each.channels, each.stride) for name, each in backbone.output_shape().items()}
    channels = list(shapes.values())
    assert [stride for _, stride in channels] == [4, 8, 16, 32]
    assert sum(number for number, _ in channels) == model.sem_seg_head.conv.in_channels
    assert not any("incre" in name for name, _ in backbone.named_parameters())
    resized = [each for each in backbone.modules() if isinstance(each, nn.Upsample)]
    assert resized and all(each.mode == "bilinear" and each.align_corners for each in resized)


def test_public_names_of_the_backbone(model, tmp_path, caplog):
    """A file with the public names, and timm's below ``backbone.``, fills the model."""
    names = {
        "backbone.net.": "backbone.",
        "sem_seg_head.conv.norm.": "cls_head.1.0.",
        "sem_seg_head.conv.": "cls_head.0.",
        "sem_seg_head.predictor.": "",
    }
    state = {"cls_head.0.bias": torch.ones(16)}
    for name, value in model.state_dict().items():
        if name.startswith("pixel_"):
            continue
        start = next(prefix for prefix in names if name.startswith(prefix))
        state[names[start] + name.removeprefix(start)] = torch.full_like(value, 2)
    torch.save(state, tmp_path / "public.pth")
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(str(tmp_path / "public.pth"))
    assert not caplog.text
    for name, value in model.state_dict().items():
        if not name.startswith("pixel_"):
            assert value.eq(1 if name.endswith("conv.norm.running_mean") else 2).all(), name
