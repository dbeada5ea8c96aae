import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from semask import SemanticFPNHead
from semask.semantic_fpn import SeMaskCrossEntropy


@pytest.fixture
def head_and_data(reference):
    data = reference("fpn_head")
    size = data.config
    shapes = {
        f"res{index}": ShapeSpec(channels=channels, stride=stride)
        for index, (channels, stride) in enumerate(zip(size["in_channels"], size["strides"]), 2)
    }
    head = SemanticFPNHead(
        shapes,
        in_features=list(shapes),
        num_classes=size["num_classes"],
        conv_dim=size["channels"],
        norm="BN",
    )
    public = {f"decode_head.{name}": value for name, value in data.group("state").items()}
    head.load_state_dict(head.adapt_checkpoint("", public))
    return head.eval(), data


@pytest.mark.parametrize("odd", ["", "_odd"])
def test_public_head_and_losses(head_and_data, assert_near, odd):
    head, data = head_and_data
    features = data.group(f"input{odd}")
    with torch.no_grad():
        logits = head.predictor(head.decode(features)).logits
        upsampled, _ = head(features)
    expected = data.group(f"output{odd}")
    assert_near(logits, expected["logits"])
    torch.testing.assert_close(
        upsampled, F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    )
    labels = data.tensors[f"labels{odd}"]
    for name, hard in {"loss_ce": 0, "loss_ce_ohem": 700}.items():
        loss = SeMaskCrossEntropy(7, hard_pixels=hard)(logits, labels, 4)["loss_sem_seg"]
        assert_near(loss, expected[name])


def test_training(head_and_data):
    head, data = head_and_data
    head.loss = SeMaskCrossEntropy(7)
    head.train()
    _, losses = head(data.group("input"), data.tensors["labels"])
    losses["loss_sem_seg"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_hard_pixels_are_of_the_batch():
    """Two pixels per image are four of the batch, of whichever image; ignored ones are none."""
    losses = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 0.5, 9.0, 9.0]])
    # Cross entropy of class 0 beside one other class: log(1 + e^x).
    logits = torch.stack([torch.zeros(2, 4), losses.expm1().log()], dim=1)[:, :, None]
    labels = torch.tensor([[0, 0, 0, 0], [0, 0, 255, 255]])[:, None]
    for hard, expected in {1: 9.0, 2: 14.0, 3: 15.5, 100: 15.5}.items():
        loss = SeMaskCrossEntropy(2, hard_pixels=hard)(logits, labels, 1)["loss_sem_seg"]
        torch.testing.assert_close(loss, torch.tensor(expected / 8))


def test_negative_number_of_hard_pixels():
    with pytest.raises(ValueError, match=r"\(MODEL.SEMASK.HARD_PIXELS\) is -1; .* at least 0"):
        SeMaskCrossEntropy(2, hard_pixels=-1)


def test_names_of_a_backbone_stay(head_and_data):
    """The head's norms may not count batches; what those of a backbone count is not the head's."""
    head, _ = head_and_data
    value = torch.ones(())
    names = {
        "decode_head.scale_heads.9.0.bn.num_batches_tracked": [],
        "decode_head.conv_seg.bias": ["sem_seg_head.predictor.bias"],
        "backbone.layer1.0.bn1.num_batches_tracked": ["backbone.layer1.0.bn1.num_batches_tracked"],
    }
    found = head.adapt_checkpoint("sem_seg_head.", dict.fromkeys(names, value))
    assert list(found) == sum(names.values(), [])


def test_other_files_are_left_alone(head_and_data):
    head, _ = head_and_data
    assert head.adapt_checkpoint("sem_seg_head.", {"backbone.norm0.weight": torch.ones(1)}) == {}
