"""Connected components of a semantic map: what concept regions are matched to.

NumPy and OpenCV only, so that it serves any data pipeline.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

__all__ = ["ComponentMap", "connected_components"]


class ComponentMap(NamedTuple):
    """The components of one label map.

    Attributes:
        indices: (H, W) int16, for each pixel its component in ``[0, C)``, or -1 where the pixel
            belongs to none: ignored, taken away by the opening, or in a dropped component.
        classes: (C,) int64, the class of each component. Components are sorted by area, largest
            first; of equal ones the lower class comes first.
    """

    indices: np.ndarray
    classes: np.ndarray


def connected_components(
    sem_seg: np.ndarray,
    *,
    ignore_label: int = 255,
    min_area_ratio: float = 0.05,
    max_components: int = 64,
    kernel_size: int = 3,
) -> ComponentMap:
    """Split every class of a semantic map into its connected components (Sec. 3.3, Fig. A).

    Each class is opened (erosion, then dilation), which takes away specks and thin bridges, and
    falls into 8-connected components. Those smaller than ``min_area_ratio`` times the largest
    component of this map, whatever its class, are dropped (footnote 2), and of the rest the
    ``max_components`` largest stay. Areas are those after the opening. Beyond the border the
    opening assumes more of the same, so it does not eat what touches the border.

    Cost: with an opening, a fixed number of passes over the map, however many classes there are:
    3 to 6 ms for 512x512 on one core, noisy labels included. Without one (``kernel_size`` 1), a
    pass over the bounding box of each class. No mask per class or component is kept.

    Args:
        sem_seg: (H, W) integer array of class labels, 0 or more.
        ignore_label: the label of pixels that belong to no class.
        min_area_ratio: share of the largest component's area, in [0, 1].
        max_components: the most components to keep, at least 1.
        kernel_size: side of the opening's square in pixels, odd; 1 leaves the opening out.

    Returns:
        The component map; without a labelled pixel it has no component and is -1 everywhere.

    Raises:
        TypeError: ``sem_seg`` is not an array of integers.
        ValueError: ``sem_seg`` is not 2-D or holds a negative label other than ``ignore_label``,
            or an argument is out of its range.
    """
    sem_seg = np.asarray(sem_seg)
    _check_arguments(sem_seg, min_area_ratio, max_components, kernel_size)
    if sem_seg.size == 0:
        return ComponentMap(np.full(sem_seg.shape, -1, np.int16), np.zeros(0, np.int64))

    narrow, ignored = _narrow(sem_seg, ignore_label)
    if kernel_size > 1:
        labels = _label_opened(narrow, ignored, kernel_size)
    else:
        labels = _label_as_is(narrow, ignored)

    # Label 0 stands for "in no component"; labels that were merged away have no pixel.
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    class_of = np.zeros(len(areas), np.int64)
    class_of[labels.ravel()] = sem_seg.ravel()

    kept = np.flatnonzero((areas > 0) & (areas >= min_area_ratio * areas.max()))
    kept = kept[np.lexsort((class_of[kept], -areas[kept]))][:max_components]
    index_of = np.full(len(areas), -1, np.int16)
    index_of[kept] = np.arange(len(kept))
    return ComponentMap(np.take(index_of, labels), class_of[kept])


def _check_arguments(
    sem_seg: np.ndarray, min_area_ratio: float, max_components: int, kernel_size: int
) -> None:
    if sem_seg.dtype.kind not in "iu":
        raise TypeError(f"sem_seg must hold integers, not {sem_seg.dtype}")
    if sem_seg.ndim != 2:
        raise ValueError(f"sem_seg must be of shape (H, W), not {sem_seg.shape}")
    if not 0 <= min_area_ratio <= 1:
        raise ValueError(f"min_area_ratio must be in [0, 1], not {min_area_ratio}")
    if not 1 <= max_components <= np.iinfo(np.int16).max:
        raise ValueError(f"max_components must be in [1, 32767], not {max_components}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 1, not {kernel_size}")


def _narrow(sem_seg: np.ndarray, ignore_label: int) -> tuple[np.ndarray, int]:
    """The same partition as uint8 or uint16, which OpenCV's filters take.

    Returns:
        (H, W) array, contiguous, and the value that ignored pixels have in it (-1: there are none).
    """
    if sem_seg.dtype != np.uint8:
        low, high = int(sem_seg.min()), int(sem_seg.max())
        if low < 0:
            negative = np.unique(sem_seg[sem_seg < 0])
            if negative.tolist() != [ignore_label]:
                raise ValueError(
                    f"sem_seg holds the negative labels {negative[:10].tolist()}; "
                    f"ignored pixels must have the label {ignore_label}"
                )
        if low < 0 or high > np.iinfo(np.uint16).max:
            # Large labels are rare: only they pay for a sort, which replaces them by their ranks.
            values, sem_seg = np.unique(sem_seg, return_inverse=True)
            if len(values) > np.iinfo(np.uint16).max:
                raise ValueError(f"sem_seg holds {len(values)} different labels, more than 65535")
            rank = np.flatnonzero(values == ignore_label)
            ignore_label = int(rank[0]) if len(rank) else -1
            high = len(values) - 1
        sem_seg = sem_seg.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    return np.ascontiguousarray(sem_seg), ignore_label


def _label_opened(sem_seg: np.ndarray, ignore_label: int, kernel_size: int) -> np.ndarray:
    """Label the components of the opened classes, for all classes at once.

    A pixel outlives the erosion of its class if minimum and maximum over its window agree. All
    its neighbours are then of its class, so among the survivors touching means same class, and
    one labelling does for all classes. The dilation gives every survivor's window its label;
    labels that meet within a class are one component.

    Returns:
        (H, W) int32 labels, 0 where the opening removed the pixel. Not all numbers are in use.
    """
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    # OpenCV's default border leaves what lies beyond it out of the minimum and the maximum.
    low, high = cv2.erode(sem_seg, kernel), cv2.dilate(sem_seg, kernel)
    survivors = ((low == high) & (low != ignore_label)).view(np.uint8)
    num, labels = cv2.connectedComponents(survivors, connectivity=8, ltype=cv2.CV_32S)
    # The filter knows no int32. float32 is exact up to 2^24.
    labels = cv2.dilate(labels.astype(np.uint16 if num <= 65536 else np.float32), kernel)

    here, there = [], []
    for first, second in _neighbours(*sem_seg.shape):
        a, b = labels[first], labels[second]
        meet = (a != b) & (sem_seg[first] == sem_seg[second])
        meet = np.flatnonzero(meet & (a != 0) & (b != 0))
        here.append(a.take(meet))
        there.append(b.take(meet))
    here, there = (np.concatenate(pairs).astype(np.int64) for pairs in (here, there))
    return np.take(_merge(num, here, there), labels.astype(np.int32))


def _neighbours(height: int, width: int):
    """The four ways of being 8-connected: pairs of slices whose pixels are neighbours."""
    top, bottom = slice(0, height - 1), slice(1, height)
    left, right = slice(0, width - 1), slice(1, width)
    every = slice(None)
    yield (every, left), (every, right)
    yield (top, every), (bottom, every)
    yield (top, left), (bottom, right)
    yield (top, right), (bottom, left)


def _merge(num: int, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(num,) int32: for each label the lowest that it is connected to by (here, there) pairs."""
    root = np.arange(num, dtype=np.int32)
    here, there = np.divmod(np.unique(here * num + there), num)
    while True:
        a, b = root[here], root[there]
        apart = a != b
        if not apart.any():
            return root
        here, there, a, b = here[apart], there[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root != root[root]).any():
            root = root[root]


def _label_as_is(sem_seg: np.ndarray, ignore_label: int) -> np.ndarray:
    """Label the components of the classes without an opening.

    Returns:
        (H, W) int32 labels, 0 where ignored.
    """
    labels = np.zeros(sem_seg.shape, np.int32)
    num_labels = 0
    for value in np.flatnonzero(np.bincount(sem_seg.ravel())):
        if value == ignore_label:
            continue
        mask = (sem_seg == value).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        box = slice(y, y + height), slice(x, x + width)
        num, of_class = cv2.connectedComponents(mask[box], connectivity=8, ltype=cv2.CV_32S)
        # Classes do not overlap, so sums are as good as masked writes, and cheaper.
        labels[box] += of_class + mask[box] * np.int32(num_labels)
        num_labels += num - 1
    return labels
