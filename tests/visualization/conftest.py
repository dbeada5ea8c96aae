import numpy as np
import pytest


@pytest.fixture
def scene():
    """A street of 60 x 80 pixels: image, labels, segments (-1 for none) and their names."""
    labels = np.zeros((60, 80), np.uint8)
    labels[30:] = 1
    labels[34:46, 8:28] = labels[36:50, 40:70] = 2
    labels[:4] = 255
    segments = np.full(labels.shape, -1, np.int16)
    segments[34:46, 8:28], segments[36:50, 40:70] = 0, 1
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    return image, labels, segments, ["car 1", "car 2"]
