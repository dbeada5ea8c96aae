"""Token metrics against the paper's definition (Sec. 4), pixel by pixel in float64."""

import math

import numpy as np
import pytest
import torch

from sgr.evaluation.token_metrics import (
    cell_label_counts,
    diversity,
    label_histograms,
    present_bins,
    semantics,
    token_histograms,
)


def masks_at_ground_truth(regions, stride, input_size, size):
    """(K, H, W): each region as a full-size mask, nearest neighbour, at the label map's pixels."""
    full = regions.repeat(stride, axis=1).repeat(stride, axis=2)
    full = full[:, : input_size[0], : input_size[1]]
    masks = np.zeros((len(regions), *size))
    for y in range(size[0]):
        for x in range(size[1]):
            row = math.floor((y + 0.5) * input_size[0] / size[0])
            column = math.floor((x + 0.5) * input_size[1] / size[1])
            masks[:, y, x] = full[:, row, column]
    return masks


def oracle(regions, labels, classes, stride, input_size):
    """Histograms (K, classes), S and D, with a loop for every sum in the text."""
    masks = masks_at_ground_truth(regions, stride, input_size, labels.shape)
    histograms = np.zeros((len(regions), len(classes)))
    for k in range(len(regions)):
        for y in range(labels.shape[0]):
            for x in range(labels.shape[1]):
                if labels[y, x] in classes:
                    histograms[k, classes.index(labels[y, x])] += masks[k, y, x]
        histograms[k] /= histograms[k].sum()
    entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in histograms]
    mean = sum(histograms) / len(histograms)
    variances = [sum((row - mean) ** 2) for row in histograms]
    return histograms, sum(entropies) / len(entropies), sum(variances) / len(variances)


def measure(regions, labels, stride, input_size, ignore_label=255):
    histograms, _, _ = label_histograms(
        torch.from_numpy(regions),
        torch.from_numpy(labels),
        stride,
        input_size=input_size,
        ignore_label=ignore_label,
    )
    return histograms, semantics(histograms).item(), diversity(histograms).item()


@pytest.mark.parametrize(
    "size, input_size, stride",
    [
        ((24, 32), (24, 32), 8),  # the input is the image, a whole number of cells
        ((21, 30), (21, 30), 8),  # the last row and column of cells are cut off
        ((20, 26), (31, 41), 8),  # enlarged
        ((45, 37), (23, 19), 4),  # reduced
        ((19, 33), (40, 24), 16),  # the aspect ratio changes
        ((7, 5), (64, 64), 4),  # more cells than pixels
        ((13, 17), (13, 17), 32),  # one cell
    ],
)
def test_matches_the_definition_pixel_by_pixel(size, input_size, stride):
    rng = np.random.default_rng(0)
    grid = -(-input_size[0] // stride), -(-input_size[1] // stride)
    regions = rng.random((5, *grid)).astype(np.float32) ** 4
    labels = rng.choice([0, 3, 7, 150, 255], size=size).astype(np.uint8)

    histograms, s, d = measure(regions, labels, stride, input_size)

    classes = sorted(set(labels.flatten().tolist()) - {255})
    expected_histograms, expected_s, expected_d = oracle(
        regions.astype(np.float64), labels, classes, stride, input_size
    )
    np.testing.assert_allclose(histograms.numpy(), expected_histograms, rtol=1e-5, atol=1e-7)
    assert s == pytest.approx(expected_s, rel=1e-5)
    assert d == pytest.approx(expected_d, rel=1e-4, abs=1e-7)


def test_counts_add_up_to_the_labelled_pixels_and_larger_grids_count_nothing():
    labels = torch.tensor([[0, 1, 2], [1, 1, 0]])
    counts = cell_label_counts(labels, (3, 4), 2, input_size=(4, 6), num_bins=2)
    assert counts.shape == (12, 2)
    assert counts.sum(0).tolist() == [2, 3]  # label 2 is outside the bins
    by_cell = counts.view(3, 4, 2)
    assert by_cell[0, 1].tolist() == [0, 1]
    assert not by_cell[2].any() and not by_cell[:, 3].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_present_bins_numbers_the_labels_that_vote(dtype):
    labels = torch.tensor([[40, 2, 2], [11, 9, 40]], dtype=dtype)
    bins, present = present_bins(labels, ignore_label=11)
    assert bins.tolist() == [[2, 0, 0], [-1, 1, 2]]
    assert present.tolist() == [2, 9, 40]


def test_histograms_come_with_their_labels():
    labels = torch.tensor([[40, 40, 2, 255]])
    regions = torch.tensor([[[1.0, 0.5]]])
    histograms, present, bins = label_histograms(
        regions, labels, 2, input_size=(1, 4), ignore_label=255
    )
    assert present.tolist() == [2, 40] and bins.tolist() == [[1, 1, 0, -1]]
    assert histograms.tolist() == [[pytest.approx(0.2), pytest.approx(0.8)]]


def test_negative_labels_never_vote():
    bins, present = present_bins(torch.tensor([[-1, 5]]))
    assert bins.tolist() == [[-1, 0]] and present.tolist() == [5]


def test_no_labelled_pixel_is_not_measurable():
    histograms, s, d = measure(
        np.full((3, 2, 2), 0.5, np.float32), np.full((8, 8), 255, np.uint8), 4, (8, 8)
    )
    assert histograms.shape == (3, 0)
    assert math.isnan(s) and math.isnan(d)


def test_one_class_has_neither_entropy_nor_variance():
    rng = np.random.default_rng(1)
    _, s, d = measure(rng.random((4, 2, 2), np.float32), np.full((8, 8), 3, np.uint8), 4, (8, 8))
    assert s == 0 and d == 0


def test_one_token_has_no_variance():
    labels = np.array([[0, 1]], np.uint8).repeat(4, 0).repeat(2, 1)
    _, s, d = measure(np.full((1, 2, 2), 0.3, np.float32), labels, 2, (4, 4))
    assert s == pytest.approx(math.log(2)) and d == 0


def test_tokens_of_two_pure_classes():
    regions = np.array([[[1, 0]], [[0, 1]]], np.float32)
    labels = np.array([[0, 1]], np.uint8).repeat(4, 0).repeat(4, 1)
    _, s, d = measure(regions, labels, 4, (4, 8))
    assert s == 0
    assert d == pytest.approx(0.5)  # each is at squared distance 2 * 0.5^2 from the mean


def test_a_token_without_mass_on_labelled_pixels_is_left_out():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, (8, 8)).astype(np.uint8)
    labels[:4, :4] = 255
    regions = rng.random((4, 2, 2), np.float32)
    only_ignored = np.array([[[0.9, 0], [0, 0]]], np.float32)
    nowhere = np.zeros((1, 2, 2), np.float32)

    histograms, s, d = measure(np.concatenate([regions, only_ignored, nowhere]), labels, 4, (8, 8))

    assert not histograms[4:].any()
    _, expected_s, expected_d = measure(regions, labels, 4, (8, 8))
    assert s == pytest.approx(expected_s) and d == pytest.approx(expected_d)


def test_tiny_weights_still_make_a_histogram():
    counts = torch.tensor([[3.0, 1.0]])
    histograms = token_histograms(torch.tensor([[1e-30]]), counts)
    assert histograms.tolist() == [[0.75, 0.25]]


def test_a_grid_that_does_not_cover_the_image_is_an_error():
    with pytest.raises(ValueError, match="2 x 2 cells of stride 8 cover 16 x 16"):
        cell_label_counts(
            torch.zeros(20, 16, dtype=torch.long), (2, 2), 8, input_size=(20, 16), num_bins=1
        )


def test_arrays_and_a_missing_stride():
    regions, labels = torch.rand(3, 2, 2), np.arange(16).reshape(4, 4).astype(np.uint8)
    found = label_histograms(regions, labels, 2, input_size=(4, 4))
    expected = label_histograms(regions, torch.from_numpy(labels), 2, input_size=(4, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(ValueError, match="stride must be .*got None.*stride="):
        label_histograms(regions, labels, None, input_size=(4, 4))
