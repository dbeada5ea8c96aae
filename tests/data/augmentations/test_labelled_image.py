import numpy as np
import pytest
from detectron2.data import transforms as T

from sgr.data.augmentations.labelled_image import LabelledImage, compact

TRANSFORMS = {
    "smaller": lambda: T.ResizeTransform(40, 60, 13, 31),
    "larger": lambda: T.ResizeTransform(40, 60, 57, 90),
    "crop": lambda: T.CropTransform(7, 3, 30, 20),
    "left and right": lambda: T.HFlipTransform(60),
    "up and down": lambda: T.VFlipTransform(40),
    "turn": lambda: T.RotationTransform(40, 60, 90),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("offset", [0, 1000, 100_000, -300])
def test_numbers_beyond_a_byte_move_like_bytes(name, offset):
    """And bytes like the image: its first channel is the map."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 256, (40, 60)).astype(np.uint8)
    image = np.repeat(labels[..., None], 3, axis=-1)
    transform = TRANSFORMS[name]()
    narrow = LabelledImage(image, labels)
    wide = LabelledImage(image, labels.astype(np.int32) + offset)
    narrow.transform(transform)
    wide.transform(transform)
    assert narrow.indices.dtype == np.uint8 and wide.indices.dtype == np.int32
    np.testing.assert_array_equal(wide.indices - offset, narrow.indices)
    np.testing.assert_array_equal(wide.image, narrow.image)
    expected = transform.apply_segmentation(image)[..., 0]
    np.testing.assert_array_equal(narrow.indices, expected)


def test_augmentations_see_labels():
    seen = []

    class Watch(T.Augmentation):
        def get_transform(self, image, sem_seg):
            seen.append(sem_seg)
            return T.NoOpTransform()

    image, indices = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [2, 0]], np.uint8)
    augmentations = T.AugmentationList([T.HFlipTransform(2), Watch()])
    augmentations(LabelledImage(image, indices))
    augmentations(LabelledImage(image, indices, np.array([7, 8, 255])))
    assert seen[0].tolist() == [[1, 0], [0, 2]] and seen[1].tolist() == [[8, 7], [7, 255]]


def test_bytes_where_they_do():
    labels = np.zeros((1, 1), np.int64)
    assert compact(labels, 0, 255).dtype == np.uint8
    assert compact(labels, 5, 256).dtype == compact(labels, -1).dtype == np.int32
