import math

import pytest
import torch
from detectron2.projects.deeplab.loss import DeepLabCE
from torch.nn import functional as F

from sgr.modeling.per_pixel import CrossEntropyLoss, HardPixelMiningLoss
from sgr.modeling.per_pixel.losses import labels_of_cells
from two_processes import pixel_loss_and_gradient, run_twice

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


def test_cross_entropy_of_two_workers_is_that_of_both_images(pair, tmp_path):
    logits, labels = pair
    logits = logits.requires_grad_()
    loss = CrossEntropyLoss(3)(logits, labels, 4)["loss_sem_seg"]
    (gradient,) = torch.autograd.grad(loss, logits)
    results = run_twice(pixel_loss_and_gradient, tmp_path, logits.detach(), labels)
    torch.testing.assert_close(sum(each for each, _ in results) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([each for _, each in results]) / 2, gradient)


def test_cross_entropy_is_the_mean_over_labelled_pixels(pair):
    losses, labelled = pixel_losses(*pair, 4)
    assert 0 < labelled < len(losses)
    loss = CrossEntropyLoss(3, ignore_value=IGNORED)(*pair, 4)["loss_sem_seg"]
    assert loss.item() == pytest.approx(sum(losses) / labelled, rel=1e-5)


def test_hard_pixel_mining_is_the_mean_over_the_hardest_fifth(pair):
    losses, _ = pixel_losses(*pair, 4)
    hardest = sorted(losses)[-(len(losses) // 5) :]
    loss = HardPixelMiningLoss(3, ignore_value=IGNORED)(*pair, 4)["loss_sem_seg"]
    assert loss.item() == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


def test_hard_pixel_mining_is_detectron2s():
    logits, labels = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 20, 24))
    labels[0, :10] = IGNORED
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    expected = DeepLabCE(ignore_label=IGNORED, top_k_percent_pixels=0.2)(upsampled, labels)
    actual = HardPixelMiningLoss(3, ignore_value=IGNORED)(logits, labels, 4)["loss_sem_seg"]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss_class", [CrossEntropyLoss, HardPixelMiningLoss])
@pytest.mark.parametrize("size", [(1, 1), (8, 8)])
def test_nothing_labelled_costs_nothing(loss_class, size):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = loss_class(3)(logits, torch.full((1, *size), IGNORED), 4)["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any() and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_computed_in_float32(pair, dtype):
    logits, labels = pair
    half = logits.to(dtype)
    expected = CrossEntropyLoss(3)(half.float(), labels, 4)["loss_sem_seg"]
    with torch.autocast("cpu", dtype=dtype):
        loss = CrossEntropyLoss(3)(half, labels, 4)["loss_sem_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_cells_that_do_not_cover_the_labels():
    with pytest.raises(ValueError, match="labels are 9 x 8 pixels, .* cover 8 x 8; .*INPUT.SIZE"):
        CrossEntropyLoss(3)(torch.randn(1, 3, 2, 2), torch.zeros(1, 9, 8, dtype=torch.long), 4)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (6, 10), (7, 9)])
def test_a_cell_has_the_label_of_its_middle(stride, size):
    labels = torch.arange(2 * size[0] * size[1]).view(2, *size)
    cells = labels_of_cells(labels, torch.zeros(2, 3, 8, 10), stride, IGNORED)
    covered = torch.full((2, 8 * stride, 10 * stride), IGNORED)
    covered[:, : size[0], : size[1]] = labels
    blocks = covered.view(2, 8, stride, 10, stride)
    torch.testing.assert_close(cells, blocks[:, :, stride // 2, :, stride // 2])
