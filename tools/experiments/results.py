"""The results of the runs: a table, the values of every run, and a picture."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from PIL import Image
from tabulate import tabulate

from sgr.visualization import draw_comparison, higher_is_better, read_metrics
from sgr.visualization.metric_names import TOKEN_METRICS

from .runs import Run, status

CAPTION = """\
Values at the end of the runs: mean ± standard deviation (with N - 1) over the seeds that have
finished. Bold: the best mean. ↑ higher is better, ↓ lower is better."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        name, seed: of the run.
        status: see :func:`.runs.status`.
        values: metric -> value at the end; empty if the run has not finished.
    """

    name: str
    seed: int
    status: str
    values: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """The results of a config over its seeds.

    Attributes:
        name: of the config.
        statuses: status -> number of runs.
        values: metric -> values of the runs that have it.
    """

    name: str
    statuses: Counter[str]
    values: dict[str, list[float]]


def collect(runs: Sequence[Run]) -> list[Outcome]:
    """The outcomes of all runs so far."""
    outcomes = []
    for run in runs:
        state = status(run)
        values = final_values(run.folder) if state == "finished" else {}
        outcomes.append(Outcome(run.name, run.seed, state, values))
    return outcomes


def final_values(folder: Path) -> dict[str, float]:
    """The finite values at the end of a finished training.

    They are those of the last evaluation, and of the last iteration (losses smoothed, as in the
    log). The evaluation has a line of its own in metrics.json, with a number that is one higher.
    """
    series = read_metrics(folder)
    last = max((iterations[-1] for iterations, _ in series.values()), default=None)
    return {
        metric: float(values[-1])
        for metric, (iterations, values) in series.items()
        if iterations[-1] >= last - 1 and math.isfinite(values[-1])
    }


def measured(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> list[str]:
    """The metrics that at least one run has."""
    return [metric for metric in metrics if any(metric in outcome.values for outcome in outcomes)]


def summarize(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Group the outcomes by config, in the order in which the configs first appear."""
    summaries: dict[str, Summary] = {}
    for outcome in outcomes:
        summary = summaries.setdefault(outcome.name, Summary(outcome.name, Counter(), {}))
        summary.statuses[outcome.status] += 1
        for metric, value in outcome.values.items():
            summary.values.setdefault(metric, []).append(value)
    return list(summaries.values())


def format_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
    """Make a Markdown table of means and standard deviations, with the best means in bold.

    Where only some of the finished runs have a value, the cell says how many.
    """
    finished = [summary.statuses["finished"] for summary in summaries]
    columns = {
        "config": [summary.name for summary in summaries],
        "seeds": [_describe_seeds(summary.statuses) for summary in summaries],
        **{
            header: _column(
                [summary.values.get(metric, []) for summary in summaries], metric, finished
            )
            for metric, header in _headers(metrics).items()
        },
    }
    align = ("left", "left") + ("right",) * len(metrics)
    return tabulate(columns, "keys", tablefmt="github", disable_numparse=True, colalign=align)


def _headers(metrics: Sequence[str]) -> dict[str, str]:
    """Metric -> header: its short name if that is unique, and an arrow to the better values."""
    short = Counter(metric.rpartition("/")[2] for metric in metrics)
    headers = {}
    for metric in metrics:
        name = metric.rpartition("/")[2]
        arrow = {True: " ↑", False: " ↓", None: ""}[higher_is_better(metric)]
        headers[metric] = f"{name if short[name] == 1 else metric}{arrow}"
    return headers


def _describe_seeds(statuses: Counter[str]) -> str:
    """For example "3", or if not all runs have finished "1 of 3, 1 failed"."""
    text, total = str(statuses["finished"]), statuses.total()
    if statuses["finished"] < total:
        text += f" of {total}"
    if statuses["failed"]:
        text += f", {statuses['failed']} failed"
    return text


def _column(values: Sequence[Sequence[float]], metric: str, finished: Sequence[int]) -> list[str]:
    """The cells of a metric, one per config; the best mean is bold where several have one."""
    # Tokens are measured in nats and shares, other evaluations in percent. Losses have no family.
    family, _, name = metric.rpartition("/")
    digits = 3 if family in ("", "sgr") or name[:2] in ("S_", "D_", "sh") else 1
    means = [f"{mean(of_config):.{digits}f}" if of_config else "" for of_config in values]
    # Rounded, because two that read the same are equally good.
    shown = [float(text) for text in means if text]
    best = None
    if len(shown) > 1:
        best = {True: max, False: min, None: lambda _: None}[higher_is_better(metric)](shown)
    cells = []
    for of_config, center, runs in zip(values, means, finished):
        if center and float(center) == best:
            center = f"**{center}**"
        spread = f" ± {stdev(of_config):.{digits}f}" if len(of_config) > 1 else ""
        number = f" ({len(of_config)} of {runs})" if 0 < len(of_config) < runs else ""
        cells.append(center + spread + number)
    return cells


def write_csv(path: Path, outcomes: Sequence[Outcome], metrics: Sequence[str]) -> None:
    """Write one row of values for each run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["config", "seed", "status", *metrics])
        for outcome in outcomes:
            values = [outcome.values.get(metric, "") for metric in metrics]
            writer.writerow([outcome.name, outcome.seed, outcome.status, *values])


def write_report(outcomes: Sequence[Outcome], metrics: Sequence[str], output: Path) -> str:
    """Write results.md, results.csv and, if a run has a value, results.png.

    Args:
        outcomes: those of all runs, from :func:`collect`.
        metrics: the metrics to show; those that no run has are left out.
        output: the folder for the files.

    Returns:
        The table in results.md.
    """
    metrics = measured(outcomes, metrics)
    summaries = summarize(outcomes)
    table = format_table(summaries, metrics)
    text = f"{table}\n\n{CAPTION}\n"
    if any(metric.partition("/")[0] in ("tokens", "queries") for metric in metrics):
        text += f"{TOKEN_METRICS}\n"
    if metrics:
        picture = draw_comparison({summary.name: summary.values for summary in summaries}, metrics)
        Image.fromarray(picture).save(output / "results.png")
        text += "\n![A dot per seed, their mean and standard deviation](results.png)\n"
    (output / "results.md").write_text(text, encoding="utf-8")
    write_csv(output / "results.csv", outcomes, metrics)
    return table
