"""Connected components of a semantic map. Concept regions are matched to them.

It needs NumPy, OpenCV and SciPy only, so it can serve any data pipeline. The same in a few lines
of OpenCV, class by class, is in ``tools/benchmarks/components.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as graph_components


class ComponentMap(NamedTuple):
    """The components of one label map.

    Attributes:
        indices: (H, W) int16, the component of each pixel in ``[0, C)``, or -1 if the pixel belongs
            to none: it is ignored, removed by the opening, or in a dropped component.
        classes: (C,) int64, the class of each component. Components are sorted by area, largest
            first; if areas are equal, the lower class comes first.
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

    Each class is opened (erosion, then dilation), which removes specks and thin bridges, and split
    into 8-connected components. Components smaller than ``min_area_ratio`` times the largest
    component of the map (of any class) are dropped (footnote 2). Of the others, the
    ``max_components`` largest are kept. Areas are measured after the opening. The opening does not
    erode at the border of the map.

    Cost: with an opening, a fixed number of passes over the map for any number of classes, see
    ``tools/benchmark.py components``. Without one (``kernel_size`` 1), a pass over the bounding box
    of each class. No mask per class or component is stored.

    Args:
        sem_seg: (H, W) integer array of class labels, 0 or more.
        ignore_label: the label of pixels that belong to no class.
        min_area_ratio: share of the largest component's area, in [0, 1].
        max_components: the largest number of components to keep, at least 1.
        kernel_size: side of the opening's square in pixels, odd; 1 means no opening.

    Returns:
        The component map. Without a labelled pixel it has no component and is -1 everywhere.

    Raises:
        TypeError: ``sem_seg`` is not an array of integers.
        ValueError: ``sem_seg`` is not 2-D or holds a negative label other than ``ignore_label``,
            or an argument is out of its range.
    """
    sem_seg = np.ascontiguousarray(sem_seg)  # flipped maps are views, which are slow
    _check_arguments(sem_seg, min_area_ratio, max_components, kernel_size)
    if sem_seg.size == 0:
        return ComponentMap(np.full(sem_seg.shape, -1, np.int16), np.zeros(0, np.int64))

    narrow, ignored = _narrow(sem_seg, ignore_label)
    if kernel_size > 1:
        labels, component_of_label = _label_opened(narrow, ignored, kernel_size)
    else:
        labels, component_of_label = _label_as_is(narrow, ignored)
    label_areas, label_classes = _areas_and_classes(labels, sem_seg, len(component_of_label))

    areas = np.bincount(component_of_label, weights=label_areas)
    areas[0] = 0  # number 0 stands for "in no component"
    classes = np.empty(len(areas), np.int64)
    classes[component_of_label] = label_classes

    # Footnote 2 of the paper: components below 5 % of the largest are dropped.
    is_large = areas >= min_area_ratio * areas.max()
    kept = np.flatnonzero(is_large & (areas > 0))
    kept = kept[np.lexsort((classes[kept], -areas[kept]))][:max_components]
    index_of = np.full(len(areas), -1, np.int16)
    index_of[kept] = np.arange(len(kept))
    return ComponentMap(_look_up(index_of[component_of_label], labels), classes[kept])


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
    """Make a map uint8 or uint16 for OpenCV. Its labels and ``ignore_label`` may be renamed."""
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
            # Replace the labels by their ranks. This needs a sort, but large labels are rare.
            values, sem_seg = np.unique(sem_seg, return_inverse=True)
            if len(values) > np.iinfo(np.uint16).max:
                raise ValueError(f"sem_seg holds {len(values)} different labels, more than 65535")
            rank = np.flatnonzero(values == ignore_label)
            ignore_label = int(rank[0]) if len(rank) else -1
            high = len(values) - 1
        sem_seg = sem_seg.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    return sem_seg, ignore_label


def _label_opened(
    sem_seg: np.ndarray, ignore_label: int, kernel_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Label the components of the opened classes, for all classes at once.

    A pixel survives the erosion of its class if minimum and maximum over its window are equal. Then
    all its neighbours have its class, so survivors that touch have the same class, and one
    labelling serves all classes. The dilation spreads the label of each survivor over its window.
    Labels that meet within a class are one component.

    Returns:
        (H, W) labels in the narrowest type that holds them, 0 where the opening removed the pixel,
        and the (num,) number of the component that each label belongs to; label 0 has number 0.
    """
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    # OpenCV's default border takes no part in the minimum and the maximum.
    low, high = cv2.erode(sem_seg, kernel), cv2.dilate(sem_seg, kernel)
    survivors = low == high
    survivors &= low != ignore_label
    num, labels = cv2.connectedComponents(
        survivors.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    labels = _narrowest(labels, num)
    if labels.dtype == np.int32:
        # The filter does not take int32. float32 is exact up to 2^24.
        labels = cv2.dilate(labels.astype(np.float32), kernel).astype(np.int32)
    else:
        labels = cv2.dilate(labels, kernel)
    here, there = _meetings(labels, sem_seg)
    if not len(here):
        return labels, np.arange(num)
    # Label 0 meets no other label, so SciPy gives it the number 0 as well.
    graph = coo_array((np.ones(len(here), bool), (here, there)), shape=(num, num))
    return labels, graph_components(graph, directed=False)[1]


def _narrowest(labels: np.ndarray, num: int) -> np.ndarray:
    """Labels below ``num`` as uint8, uint16 or int32: fewer bytes make each pass faster."""
    if num <= 256:
        return labels.astype(np.uint8)
    return labels.astype(np.uint16) if num <= 65536 else labels


def _meetings(labels: np.ndarray, sem_seg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different labels, none of them 0, that are 8-neighbours within a class."""
    width = labels.shape[1]
    labels, sem_seg = labels.ravel(), sem_seg.ravel()
    labelled = labels != 0
    here, there = [labels[:0]], [labels[:0]]
    # The neighbours to the right, down left, down, down right; and the column without this one.
    for step, border in ((1, width - 1), (width - 1, 0), (width, None), (width + 1, width - 1)):
        count = max(labels.size - step, 0)
        meet = labels[:count] != labels[step:]
        meet &= sem_seg[:count] == sem_seg[step:]
        meet &= labelled[:count]
        meet &= labelled[step:]
        if not meet.any():  # true for most maps, and faster than to find the places
            continue
        first = np.flatnonzero(meet)
        if border is not None:
            first = first[first % width != border]
        here.append(labels[first])
        there.append(labels[first + step])
    return np.concatenate(here).astype(np.int64), np.concatenate(there).astype(np.int64)


def _label_as_is(sem_seg: np.ndarray, ignore_label: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as :func:`_label_opened` without an opening: each label is a component."""
    labels = np.zeros(sem_seg.shape, np.int32)
    num_labels = 0
    for value in np.flatnonzero(np.bincount(sem_seg.ravel())):
        if value == ignore_label:
            continue
        mask = (sem_seg == value).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        box = slice(y, y + height), slice(x, x + width)
        num, of_class = cv2.connectedComponents(mask[box], connectivity=8, ltype=cv2.CV_32S)
        # Classes do not overlap, so a sum has the effect of a masked write, and is cheaper.
        labels[box] += of_class + mask[box] * np.int32(num_labels)
        num_labels += num - 1
    return _narrowest(labels, num_labels + 1), np.arange(num_labels + 1)


def _areas_and_classes(
    labels: np.ndarray, sem_seg: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Area and class of each of ``num`` labels: two (num,) int64 arrays.

    It works on runs of equal labels; there are far fewer runs than pixels.
    """
    labels = labels.ravel()
    starts, lengths = find_runs(labels)
    of_run = labels[starts]
    classes = np.zeros(num, np.int64)
    classes[of_run] = sem_seg.ravel()[starts]
    return np.bincount(of_run, weights=lengths, minlength=num).astype(np.int64), classes


def find_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values in an (N,) array start, and how long they are."""
    is_start = np.ones(values.size, bool)
    is_start[1:] = values[1:] != values[:-1]
    starts = np.flatnonzero(is_start)
    return starts, np.diff(starts, append=values.size)


def _look_up(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``table[labels]``, ten times as fast if the labels are bytes."""
    if labels.dtype != np.uint8:
        return np.take(table, labels)
    whole = np.zeros(256, table.dtype)
    whole[: len(table)] = table
    return cv2.LUT(labels, whole)
