"""Boundary IoU beside its definition and beside the paper's procedure."""

import math

import cv2
import numpy as np
import pytest
import torch

from sgr.evaluation.boundary_iou import boundary_classes, boundary_distance, boundary_pixels


def literal_boundary(mask, distance):
    """The pixels of a mask from which a pixel that is no mask is at most ``distance`` away."""
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        for other_row in range(row - distance, row + distance + 1):
            for other_column in range(column - distance, column + distance + 1):
                inside = 0 <= other_row < height and 0 <= other_column < width
                if not (inside and mask[other_row, other_column]):
                    boundary[row, column] = True
    return boundary


def eroded_boundary(mask, distance):
    """As the paper does: erosions by a square of 3 x 3, outside of the image there is no mask."""
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask & (eroded[1:-1, 1:-1] == 0)


def blobs(rng, size, num_classes):
    """A label map of large pieces, with a pixel here and there."""
    noise = cv2.GaussianBlur(rng.random(size).astype(np.float32), (0, 0), max(size) / 12)
    ranks = noise.ravel().argsort().argsort().reshape(size)
    labels = ranks * num_classes // ranks.size
    return np.where(rng.random(size) < 0.001, 0, labels)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    size, distance = tuple(rng.integers(1, 14, 2)), int(rng.integers(1, 5))
    labels = blobs(rng, size, 3) - 1
    found = boundary_pixels(torch.from_numpy(labels), distance).numpy()
    for label in np.unique(labels):
        mask = labels == label
        np.testing.assert_array_equal(found & mask, literal_boundary(mask, distance))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 64), (120, 90), (240, 320)])
def test_equals_the_erosion_of_each_class(size):
    labels = blobs(np.random.default_rng(0), size, 5)
    distance = boundary_distance(size, 0.02)
    assert distance == max(1, round(0.02 * math.sqrt(size[0] ** 2 + size[1] ** 2)))
    found = boundary_pixels(torch.from_numpy(labels), distance).numpy()
    for label in range(5):
        mask = labels == label
        np.testing.assert_array_equal(found & mask, eroded_boundary(mask, distance))


def test_a_window_larger_than_the_image():
    assert boundary_pixels(torch.zeros((3, 4), dtype=torch.int32), 100).all()


def test_ignored_pixels_belong_to_no_mask():
    """Where the ground truth ends, both contours are; labels that are no class have none."""
    truth = torch.zeros((12, 20), dtype=torch.int32)
    predicted = torch.zeros_like(truth)
    truth[:, 10:] = -1
    predicted[:, 15:] = 1
    predicted[5, 5] = 2
    of_truth, of_prediction, of_both = boundary_classes(truth, predicted, 2, 0.04)
    labelled = np.zeros((12, 20), bool)
    labelled[:, :10] = True
    expected = eroded_boundary(labelled, 1)
    np.testing.assert_array_equal(of_truth, expected)
    labelled[5, 5] = False
    np.testing.assert_array_equal(of_prediction, eroded_boundary(labelled, 1))
    np.testing.assert_array_equal(of_both, expected)
    assert of_prediction[4:7, 4:7].sum() == 8
