import time

import cv2
import numpy as np
import pytest
from scipy import ndimage

from sgr.data.components import connected_components


def literal_components(sem_seg, ignore_label=255, min_area_ratio=0.05, kernel_size=3):
    """Class by class, as the paper says it: a list of (class, mask), largest first."""
    square = np.ones((kernel_size, kernel_size), bool)
    found = []
    for label in np.unique(sem_seg):
        if label == ignore_label:
            continue
        # Outside the image lies more of the same.
        mask = ndimage.binary_erosion(sem_seg == label, square, border_value=1)
        mask = ndimage.binary_dilation(mask, square)
        components, num = ndimage.label(mask, structure=np.ones((3, 3)))
        found += [(int(label), components == i) for i in range(1, num + 1)]
    largest = max((mask.sum() for _, mask in found), default=0)
    found = [(label, mask) for label, mask in found if mask.sum() >= min_area_ratio * largest]
    return sorted(found, key=lambda item: (-item[1].sum(), item[0]))


def check(sem_seg, max_components=64, **kwargs):
    indices, classes = connected_components(sem_seg, max_components=max_components, **kwargs)
    every = literal_components(sem_seg, **kwargs)
    expected = every[:max_components]
    assert indices.shape == sem_seg.shape and indices.dtype == np.int16
    assert classes.shape == (len(expected),) and classes.dtype == np.int64
    assert indices.min(initial=-1) == -1 or -1 not in indices
    assert set(np.unique(indices)) - {-1} == set(range(len(classes)))
    areas = [int((indices == i).sum()) for i in range(len(classes))]
    assert areas == [int(mask.sum()) for _, mask in expected]
    assert classes.tolist() == [label for label, _ in expected]
    # Components of equal area and class may come in any order; where the cut at max_components
    # goes between such, either is right.
    masks = {(label, mask.tobytes()) for label, mask in every}
    ours = {(int(label), (indices == i).tobytes()) for i, label in enumerate(classes)}
    assert ours <= masks and len(ours) == len(classes)
    return indices, classes


def blobs(rng, size=(60, 80), num_classes=6, noise=0.05, num_seeds=25, ignore=True):
    """A map of Voronoi cells with some pixels of other classes and some ignored ones."""
    seeds = rng.uniform(0, 1, (num_seeds, 2)) * size
    yx = np.stack(np.mgrid[: size[0], : size[1]], -1)
    nearest = ((yx[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    sem_seg = rng.integers(0, num_classes, num_seeds)[nearest]
    sem_seg = np.where(rng.random(size) < noise, rng.integers(0, num_classes, size), sem_seg)
    if ignore:
        sem_seg = np.where(rng.random(size) < 0.02, 255, sem_seg)
    return sem_seg.astype(np.uint8)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.3])
def test_equals_the_literal_loop(kernel_size, ratio, noise):
    rng = np.random.default_rng(int(10 * ratio + 100 * noise + kernel_size))
    for _ in range(3):
        sem_seg = blobs(rng, noise=noise)
        check(sem_seg, min_area_ratio=ratio, kernel_size=kernel_size)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_pure_noise(kernel_size):
    sem_seg = np.random.default_rng(0).integers(0, 4, (40, 50), np.uint8)
    check(sem_seg, min_area_ratio=0.0, kernel_size=kernel_size)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5)])
def test_tiny_maps(shape):
    rng = np.random.default_rng(3)
    for kernel_size in (1, 3, 5):
        for _ in range(10):
            sem_seg = rng.choice([0, 1, 255], shape).astype(np.uint8)
            check(sem_seg, min_area_ratio=0.0, kernel_size=kernel_size)


def test_all_ignored_and_empty():
    for sem_seg in (np.full((20, 30), 255, np.uint8), np.zeros((0, 30), np.uint8)):
        indices, classes = connected_components(sem_seg)
        assert indices.shape == sem_seg.shape and (indices == -1).all()
        assert classes.shape == (0,)


def test_opening_removes_everything():
    sem_seg = (np.indices((20, 20)).sum(0) % 2).astype(np.uint8)
    indices, classes = check(sem_seg)
    assert (indices == -1).all() and len(classes) == 0


def test_one_class_is_one_component():
    indices, classes = check(np.full((20, 30), 7, np.uint8))
    assert (indices == 0).all() and classes.tolist() == [7]


def test_opening_keeps_what_touches_the_border():
    sem_seg = np.full((30, 30), 255, np.uint8)
    sem_seg[:2, :2] = 1  # a corner
    sem_seg[10:20, :2] = 2  # two pixels wide, at the border
    sem_seg[10:20, 10:12] = 3  # two pixels wide, inside
    indices, classes = check(sem_seg, min_area_ratio=0.0)
    assert classes.tolist() == [2, 1]
    assert (indices[:2, :2] == 1).all() and (indices[10:20, :2] == 0).all()


def test_single_pixels():
    sem_seg = np.full((9, 9), 255, np.uint8)
    sem_seg[4, 4] = 0
    sem_seg[0, 0] = 1
    assert len(check(sem_seg)[1]) == 0
    assert check(sem_seg, kernel_size=1)[1].tolist() == [0, 1]


def test_components_join_at_corners():
    sem_seg = np.full((12, 12), 255, np.uint8)
    sem_seg[:6, :6] = sem_seg[6:, 6:] = 4
    indices, _ = check(sem_seg)
    assert indices[0, 0] == indices[-1, -1] == 0
    # Two classes may cross in such a corner.
    sem_seg[:6, 6:] = sem_seg[6:, :6] = 5
    assert check(sem_seg)[1].tolist() == [4, 5]


def test_small_ones_are_measured_against_the_largest_of_any_class():
    sem_seg = np.full((40, 40), 0, np.uint8)
    sem_seg[:20] = 1
    sem_seg[25:29, 4:8] = 2
    assert check(sem_seg, min_area_ratio=0.05)[1].tolist() == [1, 0]
    assert check(sem_seg, min_area_ratio=0.02)[1].tolist() == [1, 0, 2]


def test_keeps_the_largest():
    rng = np.random.default_rng(5)
    sem_seg = blobs(rng, num_seeds=80, noise=0.0)
    every, _ = check(sem_seg, min_area_ratio=0.0)
    for most in (1, 5, 17):
        some, classes = check(sem_seg, min_area_ratio=0.0, max_components=most)
        assert len(classes) == most
        assert ((some == every) | (some == -1)).all()


def test_ties_are_in_class_order_and_repeatable():
    sem_seg = np.full((16, 40), 255, np.uint8)
    for i, label in enumerate([9, 3, 9, 3, 1]):
        sem_seg[2:8, 1 + 8 * i : 7 + 8 * i] = label
    first, classes = check(sem_seg)
    assert classes.tolist() == [1, 3, 3, 9, 9]
    assert (connected_components(sem_seg).indices == first).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int16, np.int32, np.int64, np.uint32])
def test_other_dtypes(dtype):
    sem_seg = blobs(np.random.default_rng(1), ignore=False).astype(dtype)
    sem_seg[:4] = 100
    check(sem_seg, ignore_label=100)


def test_large_labels():
    small = blobs(np.random.default_rng(2), ignore=False).astype(np.int32)
    reference, classes = check(small, ignore_label=0)
    # Beyond 8 bits, and beyond 16.
    for table in ([65535, 3, 300, 40000, 50000, 65000], [2**31 - 1, 3, 300, 70000, 10**6, 10**9]):
        table = np.array(table)
        ours, ours_classes = check(table.astype(np.int32)[small], ignore_label=int(table[0]))
        assert (ours == reference).all() and (ours_classes == table[classes]).all()


def test_more_than_255_labels():
    sem_seg = np.arange(400, dtype=np.uint16).reshape(20, 20).repeat(4, 0).repeat(4, 1)
    indices, classes = connected_components(sem_seg, max_components=500)
    assert classes.tolist() == [c for c in range(400) if c != 255]
    assert (classes[indices[indices >= 0]] == sem_seg[indices >= 0]).all()


def test_all_256_labels_of_a_byte():
    sem_seg = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(4, 0).repeat(4, 1)
    _, classes = connected_components(sem_seg, ignore_label=-1, max_components=300)
    assert classes.tolist() == list(range(256))


def test_more_components_than_16_bits_count():
    sem_seg = np.full((1028, 1028), 255, np.uint8)
    for i in range(3):
        for j in range(3):
            sem_seg[i::4, j::4] = 1
    indices, classes = connected_components(sem_seg, max_components=32767)
    assert len(classes) == 32767 and (classes == 1).all()
    areas = np.bincount(indices[indices >= 0])
    assert (areas == 9).all()


def test_negative_ignore_label():
    sem_seg = blobs(np.random.default_rng(4)).astype(np.int64)
    expected = check(sem_seg)
    ours = connected_components(np.where(sem_seg == 255, -1, sem_seg), ignore_label=-1)
    assert (ours.indices == expected[0]).all() and (ours.classes == expected[1]).all()
    with pytest.raises(ValueError, match=r"-1\].*255"):
        connected_components(np.where(sem_seg == 255, -1, sem_seg))


def test_input_may_be_a_view():
    whole = blobs(np.random.default_rng(6), size=(120, 160))
    for view in (whole[::2, ::2], whole[::-1], whole.T, whole[:, ::-1][3:50]):
        before = view.copy()
        check(view)
        assert (view == before).all()
    assert not np.shares_memory(connected_components(whole).indices, whole)


def test_mistakes():
    good = np.zeros((4, 4), np.uint8)
    with pytest.raises(TypeError, match="float32"):
        connected_components(good.astype(np.float32))
    with pytest.raises(TypeError, match="bool"):
        connected_components(good.astype(bool))
    with pytest.raises(ValueError, match=r"\(4, 4, 1\)"):
        connected_components(good[..., None])
    with pytest.raises(ValueError, match="1.5"):
        connected_components(good, min_area_ratio=1.5)
    for kernel_size in (0, 2, -3):
        with pytest.raises(ValueError, match=f"kernel_size.*{kernel_size}"):
            connected_components(good, kernel_size=kernel_size)
    for most in (0, 40000):
        with pytest.raises(ValueError, match=f"max_components.*{most}"):
            connected_components(good, max_components=most)


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_speed(noise):
    """100 crops of 512x512 a second on one core, with room for a busy machine."""
    rng = np.random.default_rng(0)
    sem_seg = blobs(rng, (512, 512), num_classes=20, noise=noise, num_seeds=40)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            connected_components(sem_seg)
            seconds.append(time.perf_counter() - start)
    finally:
        cv2.setNumThreads(threads)
    assert min(seconds) < 0.02
