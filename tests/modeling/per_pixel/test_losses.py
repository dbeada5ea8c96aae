import math

import pytest
import torch
from detectron2.projects.deeplab.loss import DeepLabCE
from torch.nn import functional as F

from sgr.modeling.per_pixel import PixelLoss

IGNORED = 255


def pixel_losses(logits, labels, stride):
    """Cross entropy pixel by pixel, 0 where ignored, and how many are labelled."""
    logits = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    losses, labelled = [], 0
    for b, image in enumerate(labels.tolist()):
        for y, row in enumerate(image):
            for x, label in enumerate(row):
                if label == IGNORED:
                    losses.append(0.0)
                    continue
                labelled += 1
                exponentials = [math.exp(value) for value in logits[b, :, y, x].tolist()]
                losses.append(-math.log(exponentials[label] / sum(exponentials)))
    return losses, labelled


@pytest.fixture
def pair():
    """Logits at stride 4, and labels of 10 x 7 pixels."""
    labels = torch.randint(0, 3, (2, 10, 7))
    labels[0, :6, 2:] = IGNORED
    return torch.randn(2, 3, 3, 2), labels


def test_cross_entropy_is_the_mean_over_labelled_pixels(pair):
    losses, labelled = pixel_losses(*pair, 4)
    assert 0 < labelled < len(losses)
    loss = PixelLoss(ignore_value=IGNORED)(*pair, 4)
    assert loss.item() == pytest.approx(sum(losses) / labelled, rel=1e-5)


def test_hard_pixel_mining_is_the_mean_over_the_hardest_fifth(pair):
    losses, _ = pixel_losses(*pair, 4)
    hardest = sorted(losses)[-(len(losses) // 5) :]
    loss = PixelLoss("hard_pixel_mining", ignore_value=IGNORED)(*pair, 4)
    assert loss.item() == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


def test_hard_pixel_mining_is_detectron2s():
    logits, labels = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 20, 24))
    labels[0, :10] = IGNORED
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    expected = DeepLabCE(ignore_label=IGNORED, top_k_percent_pixels=0.2)(upsampled, labels)
    actual = PixelLoss("hard_pixel_mining", ignore_value=IGNORED)(logits, labels, 4)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8)])
def test_nothing_labelled_costs_nothing(loss_type, size):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = PixelLoss(loss_type)(logits, torch.full((1, *size), IGNORED), 4)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any() and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_computed_in_float32(pair, dtype):
    logits, labels = pair
    half = logits.to(dtype)
    expected = PixelLoss()(half.float(), labels, 4)
    with torch.autocast("cpu", dtype=dtype):
        loss = PixelLoss()(half, labels, 4)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_mistakes():
    with pytest.raises(ValueError, match="LOSS_TYPE is 'focal'; known: cross_entropy, hard"):
        PixelLoss("focal")
    with pytest.raises(ValueError, match="labels are 9 x 8 pixels, .* cover 8 x 8; set INPUT.SIZE"):
        PixelLoss()(torch.randn(1, 3, 2, 2), torch.zeros(1, 9, 8, dtype=torch.long), 4)
