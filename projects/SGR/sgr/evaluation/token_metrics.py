"""Semantics (S) and diversity (D) of the tokens of one image (Sec. 4 of the paper).

The histogram of a token tells how the weight of its concept region is spread over the labels of the
image. The weight of a cell counts for every pixel that the cell covers. So the K histograms are one
product: the regions (K x cells) times the table of label counts per cell. This needs no full-size
masks; ``tools/benchmarks/token_metrics.py`` has the version with them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def measure_tokens(
    regions: Tensor, counts: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S and D of one image: of all its tokens, and of its active ones.

    With counts of classes these are S_C and D_C of the paper, with counts of instances S_I and D_I.

    Args:
        regions: (K, h, w) weights in [0, 1].
        counts: (h * w, bins), from :func:`cell_label_counts`, on any device.
        active: (K,) bool.

    Returns:
        S, D, and the same of the active tokens: scalars, see :func:`semantics` and
        :func:`diversity`.
    """
    histograms = token_histograms(regions.flatten(1), counts)
    of_active = histograms * active[:, None]  # rows of zeros are left out
    return (
        semantics(histograms),
        diversity(histograms),
        semantics(of_active),
        diversity(of_active),
    )


def label_histograms(
    regions: Tensor,
    labels: Tensor,
    stride: int,
    *,
    input_size: tuple[int, int],
    ignore_label: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The histogram of labels under each token of an image, in one step from the label map.

    Args:
        regions: (K, h, w) weights in [0, 1].
        labels: (H, W) integers at the ground truth's own resolution, on the regions' device;
            or an array.
        stride, input_size: see :func:`cell_label_counts`.
        ignore_label: see :func:`present_bins`.

    Returns:
        histograms: (K, N) float32, see :func:`token_histograms`.
        present: (N,) the label of each bin, see :func:`present_bins`.
        bins: (H, W) the bin of each pixel.

    Raises:
        ValueError: the regions do not cover the image, or have no stride.
    """
    labels = torch.as_tensor(labels, device=regions.device)
    bins, present = present_bins(labels, ignore_label=ignore_label)
    counts = cell_label_counts(
        bins, tuple(regions.shape[-2:]), stride, input_size=input_size, num_bins=len(present)
    )
    return token_histograms(regions.flatten(1), counts), present, bins


def present_bins(labels: Tensor, *, ignore_label: int | None = None) -> tuple[Tensor, Tensor]:
    """Number the labels of an image: these are the bins of its histograms.

    Args:
        labels: (H, W) integers. The memory grows with the largest label. Pixels with a negative
            label do not count.
        ignore_label: pixels with this label do not count either; None for no such label.

    Returns:
        bins: (H, W) int64, the bin of each pixel in [0, N), or -1 for pixels that do not count.
        present: (N,) the label of each bin, in increasing order.
    """
    # A table of the labels is many times faster than torch.unique, which sorts the pixels.
    shifted = labels.long().clamp(min=-1) + 1
    votes = torch.bincount(shifted.flatten()) > 0
    votes[:1] = False
    if ignore_label is not None and 0 <= ignore_label < len(votes) - 1:
        votes[ignore_label + 1] = False
    bin_of_label = torch.where(votes, votes.cumsum(0) - 1, -1)
    return bin_of_label[shifted], votes.nonzero()[:, 0] - 1


def cell_label_counts(
    labels: Tensor,
    grid: tuple[int, int],
    stride: int,
    *,
    input_size: tuple[int, int],
    num_bins: int,
) -> Tensor:
    """Count the pixels of each label in each cell of a feature map.

    The network sees the image resized to ``input_size``. Its cell (y, x) covers the rows
    ``[y * stride, (y + 1) * stride)`` of the input, and the same of the columns. The ground truth
    keeps its own resolution: a pixel of it belongs to the cell that contains its centre, after
    scaling to ``input_size``.

    Args:
        labels: (H, W) integers in [0, num_bins). Pixels with other values do not count.
            :func:`present_bins` makes such a map.
        grid: (h, w), the number of cells. Cells outside of the image have no pixel.
        stride: pixels of the input along each side of a cell.
        input_size: (height, width) of the network's input for this image, without padding.
        num_bins: number of labels.

    Returns:
        (h * w, num_bins) float32; the cells are in row-major order.

    Raises:
        ValueError: the grid does not cover the image, or there is no stride.
    """
    if stride is None or stride < 1:
        raise ValueError(
            f"stride must be the pixels along a side of a cell, got {stride}; regions have none if "
            "their reasoning module was made without one (stride=...)"
        )
    rows, columns = grid
    covered = rows * stride, columns * stride
    if covered[0] < input_size[0] or covered[1] < input_size[1]:
        raise ValueError(
            f"{rows} x {columns} cells of stride {stride} cover {covered[0]} x {covered[1]} pixels,"
            f" less than the image's {input_size[0]} x {input_size[1]}: the regions and the image "
            "do not belong together"
        )
    height, width = labels.shape
    # Integers, so that a centre on the edge of a cell falls on the same side on all devices.
    y = torch.arange(height, device=labels.device)
    x = torch.arange(width, device=labels.device)
    row = ((2 * y + 1) * input_size[0]).div(2 * height * stride, rounding_mode="floor")
    column = ((2 * x + 1) * input_size[1]).div(2 * width * stride, rounding_mode="floor")
    cell = row[:, None] * columns + column

    labels = labels.long()
    # Pixels that do not count share one more bin, which is dropped: cheaper than a selection.
    labels = torch.where((labels >= 0) & (labels < num_bins), labels, num_bins)
    counts = torch.bincount(
        (cell * (num_bins + 1) + labels).flatten(), minlength=rows * columns * (num_bins + 1)
    )
    return counts.view(rows * columns, num_bins + 1)[:, :num_bins].float()


def token_histograms(regions: Tensor, counts: Tensor) -> Tensor:
    """Histograms of the labels under each token, weighted by its region and normalised.

    Args:
        regions: (K, cells) weights in [0, 1].
        counts: (cells, bins), from :func:`cell_label_counts`, on any device.

    Returns:
        (K, bins) float32. Each row sums to 1. The row of a token without weight on a labelled pixel
        is zero; :func:`semantics` and :func:`diversity` leave it out.
    """
    mass = regions.float() @ counts.to(regions.device, torch.float32, non_blocking=True)
    total = mass.sum(dim=1, keepdim=True)
    return torch.where(total > 0, mass / total, 0.0)


def share_on_labels(
    regions: Tensor, bins: Tensor, stride: int, *, input_size: tuple[int, int]
) -> Tensor:
    """The share of the weight of each region that lies on pixels with a label.

    A histogram tells how the weight on labels is divided, and not how much it is. Under a region of
    the sky, the histogram of instances is that of the little weight that reaches them.

    Args:
        regions: (K, h, w) weights in [0, 1].
        bins: (H, W), negative where a pixel has no label, see :func:`present_bins`; on any device.
        stride, input_size: see :func:`cell_label_counts`.

    Returns:
        (K,) float32 in [0, 1]; 0 for a region without weight.

    Raises:
        ValueError: the regions do not cover the image, or have no stride.
    """
    counts = cell_label_counts(
        (bins < 0).long(), tuple(regions.shape[-2:]), stride, input_size=input_size, num_bins=2
    )
    counts = counts.to(regions.device, non_blocking=True)
    labelled, unlabelled = (regions.flatten(1).float() @ counts).unbind(dim=1)
    total = labelled + unlabelled
    return torch.where(total > 0, labelled / total, 0.0)


def semantics(histograms: Tensor) -> Tensor:
    """S of one image: the mean entropy of the histograms of its tokens; lower is more semantic.

    Args:
        histograms: (K, bins), from :func:`token_histograms`.

    Returns:
        Scalar, natural logarithm, in [0, log(bins)]; NaN if no token has a histogram.
    """
    return token_entropies(histograms).sum() / _has_histogram(histograms).sum()


def diversity(histograms: Tensor) -> Tensor:
    """D of one image: variance of the histograms over the tokens; higher is more diverse.

    It is the mean over the tokens of the squared distance to the mean histogram, summed over the
    bins. (The values in the paper exceed 0.25, which a mean over the bins could not.)

    Args:
        histograms: (K, bins), from :func:`token_histograms`.

    Returns:
        Scalar in [0, 1); NaN if no token has a histogram.
    """
    return token_distances(histograms).sum() / _has_histogram(histograms).sum()


def token_entropies(histograms: Tensor) -> Tensor:
    """What :func:`semantics` is the mean of: (K,) entropies in nats, 0 without a histogram."""
    return torch.special.entr(histograms).sum(dim=1)


def token_distances(histograms: Tensor) -> Tensor:
    """What :func:`diversity` is the mean of: (K,) distances, 0 without a histogram."""
    valid = _has_histogram(histograms)
    mean = histograms.sum(dim=0) / valid.sum()
    return (histograms - mean).square().sum(dim=1) * valid


def _has_histogram(histograms: Tensor) -> Tensor:
    """(K,) float32, 1 for tokens with weight on a labelled pixel and 0 for the others."""
    return (histograms > 0).any(dim=1).float()
