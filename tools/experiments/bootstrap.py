"""Differences of mIoU between configs, tested by resampling the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from .results import Outcome
from .runs import Run

SAMPLES = 5000
FILE = Path("inference") / "image_iou.npz"
CAPTION = """\
Difference of mIoU to {baseline} with the same seeds: mean ± standard deviation over the seeds. In
brackets the 95 % interval of the mean when the {images} images are drawn {samples} times with
replacement, the same images for all runs. p: two-sided, from the same draws. The rows of classes
have differences of IoU; bold: 0 is outside of the interval. The intervals say nothing of other
seeds."""


@dataclass(frozen=True)
class ImageIoU:
    """Pixels of each image and class, as ``ImageIoUEvaluator`` writes them.

    Attributes:
        file_names: N images.
        class_names: C classes.
        right, truth, predicted: (N, C) numbers of pixels.
    """

    file_names: list[str]
    class_names: list[str]
    right: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """IoU of classes and mIoU of B samples, in percent.

        Args:
            weights: (B, N) how often a sample has each image.

        Returns:
            (B, C + 1). A class without a pixel in the ground truth has nan. The last column is
            mIoU: a class that neither ground truth nor prediction has does not count in it.
        """
        right, truth, predicted = (
            weights @ counts.astype(np.float64)
            for counts in (self.right, self.truth, self.predicted)
        )
        union = truth + predicted - right
        iou = np.where(truth > 0, 100 * right / np.maximum(union, 1), np.nan)
        mean_iou = np.nansum(iou, axis=1) / np.maximum((union > 0).sum(axis=1), 1)
        return np.column_stack([iou, mean_iou])


def read_image_iou(folder: Path) -> ImageIoU | None:
    """What a run's last evaluation on its only test set has counted.

    None if TEST.EVALUATORS did not ask for it, or there are several test sets.
    """
    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE) as file:
        names, classes = file["file_names"].tolist(), file["class_names"].tolist()
        return ImageIoU(names, classes, file["right"], file["truth"], file["predicted"])


def paired_differences(
    runs: Sequence[ImageIoU], baselines: Sequence[ImageIoU], samples: int = SAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Differences of IoU between runs and the baselines with the same seeds.

    Args:
        runs, baselines: S runs each, in the same order of seeds, on the same images.
        samples: B, the number of draws.
        seed: of the draws.

    Returns:
        (S, C + 1) differences on all images, of classes and of mIoU, and (B, C + 1) means over the
        seeds of the differences on drawn images.

    Raises:
        ValueError: if two runs were evaluated on other images, or for other classes.
    """
    names = baselines[0].file_names
    if any(one.file_names != names for one in (*runs, *baselines)):
        raise ValueError("the runs were evaluated on different images")
    classes = baselines[0].class_names
    if any(one.class_names != classes for one in (*runs, *baselines)):
        raise ValueError("the runs were evaluated for different classes")
    rng = np.random.default_rng(seed)
    count = len(names)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    every = np.ones((1, count))
    pairs = list(zip(runs, baselines, strict=True))
    whole = np.concatenate([run.resampled(every) - base.resampled(every) for run, base in pairs])
    drawn = [run.resampled(weights) - base.resampled(weights) for run, base in pairs]
    return whole, np.mean(drawn, axis=0)


def p_value(drawn: np.ndarray) -> float:
    """Two-sided: twice the share of draws on the other side of 0, at least one draw."""
    share = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return min(2 * max(share, 1 / len(drawn)), 1.0)


def check_baseline(runs: Sequence[Run], baseline: str | None) -> None:
    """Raise a ValueError if a baseline is asked for that is none of the configs."""
    names = list(dict.fromkeys(run.name for run in runs))
    if baseline is not None and baseline not in names:
        raise ValueError(f"--baseline {baseline}: the configs are {', '.join(names)}")


def compare_to_baseline(
    runs: Sequence[Run], outcomes: Sequence[Outcome], baseline: str, samples: int = SAMPLES
) -> str:
    """A Markdown table of the differences of all configs to a baseline, with a caption.

    Args:
        runs: all runs, in the order of ``outcomes``.
        outcomes: see :func:`~experiments.results.collect`.
        baseline: the name of a config.
        samples: number of draws.

    Returns:
        The table, or a sentence that says what is missing. A config that cannot be compared has no
        column, and a sentence below says why.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    measured: dict[str, dict[int, ImageIoU]] = {name: {} for name in names}
    for run, outcome in zip(runs, outcomes):
        counts = read_image_iou(run.folder) if outcome.status == "finished" else None
        if counts is not None:
            measured[run.name][run.seed] = counts
    columns: dict[str, list[str]] = {}
    left_out = ""
    for name in names:
        seeds = sorted(measured[name].keys() & measured[baseline].keys())
        if name == baseline or not seeds:
            continue
        pairs = [(measured[name][seed], measured[baseline][seed]) for seed in seeds]
        try:
            column = _column(*zip(*pairs), samples)
        except ValueError as error:
            left_out += f"\nNo difference of {name} to {baseline}: {error}.\n"
            continue
        columns[f"{name} ({len(seeds)} seed{'s'[: len(seeds) > 1]})"] = column
    if not columns:
        return left_out.lstrip() or (
            f"No differences to {baseline}: no seed of it and of another config has finished with "
            "TEST.EVALUATORS \"['ImageIoUEvaluator']\" and a single dataset in DATASETS.TEST\n"
        )
    first = next(iter(measured[baseline].values()))
    every = np.ones((1, len(first.file_names)))
    mean_base = np.mean([one.resampled(every)[0] for one in measured[baseline].values()], axis=0)
    order = [len(first.class_names), *range(len(first.class_names))]
    table = tabulate(
        {
            "": ["mIoU", "p", *first.class_names],
            baseline: [f"{mean_base[order[0]]:.1f}", "", *_format(mean_base[order[1:]])],
            **columns,
        },
        "keys",
        tablefmt="github",
        disable_numparse=True,
    )
    caption = CAPTION.format(baseline=baseline, images=len(first.file_names), samples=samples)
    return f"{table}\n\n{caption}\n{left_out}"


def _format(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.1f}" for value in values]


def _column(runs: Sequence[ImageIoU], baselines: Sequence[ImageIoU], samples: int) -> list[str]:
    whole, drawn = paired_differences(runs, baselines, samples)
    cells = []
    for seeds, draws in zip(whole.T[:-1], drawn.T[:-1]):
        if np.isnan(seeds).any():
            cells.append("")
            continue
        low, high = np.nanpercentile(draws, (2.5, 97.5))
        sure = not low <= 0 <= high
        cells.append(f"**{seeds.mean():+.1f}**" if sure else f"{seeds.mean():+.1f}")
    seeds, draws = whole[:, -1], drawn[:, -1]
    low, high = np.percentile(draws, (2.5, 97.5))
    spread = f" ± {seeds.std(ddof=1):.1f}" if len(seeds) > 1 else ""
    total = f"{seeds.mean():+.1f}{spread} [{low:+.1f}, {high:+.1f}]"
    p = p_value(draws)
    return [total, "< 0.001" if p < 0.001 else f"{p:.3f}", *cells]
