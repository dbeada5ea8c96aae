#!/usr/bin/env python
"""Time and weigh SGR's parts beside literal versions of the same formulas.

    python tools/benchmark.py module
    python tools/benchmark.py matcher --repeat 5
    python tools/benchmark.py point-criterion
    python tools/benchmark.py components --json components.json
    python tools/benchmark.py token-metrics --device cuda
    python tools/benchmark.py deformable-attention --compile
    python tools/benchmark.py mask-inference --size 1024 2048 --classes 19
    python tools/benchmark.py coco-ap --images 2000
    python tools/benchmark.py multi-scale --size 768 1024 --input 512
    python tools/benchmark.py input-path --dataset coco_stuff_10k_sem_seg_train
    python tools/benchmark.py deploy --configs configs/shapes/small_fcn.yaml --size 160 160
    c=configs/shapes/small_maskformer.yaml
    python tools/benchmark.py step --configs $c $c+configs/mixins/sgr.yaml --size 160 --images 4
    python tools/benchmark.py guard
    python tools/benchmark.py growth --output output/growth.png

A sub-command runs both versions on the same random inputs, literal, SGR, literal, SGR, ..., and
prints a Markdown table:

    ms          median time of a run, after one that does not count
    MiB         memory that a run needs at its peak, beyond its inputs: on a GPU what the allocator
                says; on a CPU the growth of resident memory in a forked process, to 1 or 2 MiB
                (Linux only; where there is a GPU, CUDA_VISIBLE_DEVICES= lets PyTorch fork)
    ratio       literal / SGR: above 1, SGR is better
    deviation   largest difference between the results, relative to their largest value

Where the parts of a run are known, a second table has their milliseconds and shares.

Past a deviation of 1 % the two do not compute the same; the exit status is then 1. "step" compares
any two models; its columns are "first" and "second" in the place of "literal" and "SGR". Those of
"deploy" are "model" and "exported".

"guard" runs small forms of these, in half a minute, and says of each ratio whether it lies in the
range that tools/benchmarks/expected.yaml expects. A ratio outside is no error.

"growth" measures our code alone, at sizes that double.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
import yaml
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also when loaded from elsewhere
from benchmarks import (  # noqa: E402
    coco_ap,
    components,
    deformable_attention,
    deploy,
    growth,
    input_path,
    mask_inference,
    matcher,
    module,
    multi_scale,
    point_criterion,
    step,
    token_metrics,
)
from benchmarks.measure import Row  # noqa: E402

from sgr.engine.setup import at_least

# Module and default number of timed runs.
COMMANDS = {
    "module": (module, 7),
    "matcher": (matcher, 3),
    "point-criterion": (point_criterion, 3),
    "components": (components, 15),
    "token-metrics": (token_metrics, 5),
    "deformable-attention": (deformable_attention, 7),
    "mask-inference": (mask_inference, 1),
    "coco-ap": (coco_ap, 3),
    "multi-scale": (multi_scale, 1),
    "input-path": (input_path, 3),
    "deploy": (deploy, 7),
    "step": (step, 7),
}
ON_CPU_ONLY = ("components", "coco-ap", "input-path", "deploy")
TOLERANCE = 0.01  # convolutions in TF32, the default on recent GPUs, are this coarse
VERSIONS = ("literal", "SGR")  # of a module without names of its own
EXPECTED = Path(__file__).resolve().parent / "benchmarks" / "expected.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (implementation, repeat) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=implementation.__doc__.split(": ", 1)[1],
            description=implementation.COMPARES,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        option = partial(_add_option, command)
        implementation.add_options(option)
        option("--repeat", default=repeat, help="timed runs of each version")
        option("--threads", default=1, help="CPU threads")
        option(
            "--clock",
            type=str,
            choices=("wall", "processor"),
            default="wall",
            help="what time counts; that of the processor, summed over the threads, hardly depends "
            "on what else a machine does",
        )
        devices = ("cpu",) if name in ON_CPU_ONLY else ("cpu", "cuda")
        command.add_argument("--device", choices=devices, default="cpu", help="where to run")
        command.add_argument("--json", metavar="FILE", help="write all figures there, too")
    guard = commands.add_parser("guard", help="small runs of the others, and the ratios expected")
    guard.add_argument("file", nargs="?", type=Path, default=EXPECTED, help="with the expectations")
    curves = commands.add_parser(
        "growth",
        help=growth.__doc__.split(": ", 1)[1],
        description=growth.COMPARES,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    growth.add_options(partial(_add_option, curves))
    return parser


def format_table(rows: Sequence[Row], versions: Sequence[str] = VERSIONS) -> str:
    """The rows as a Markdown table."""
    cells = [_cells(row, versions) for row in rows]
    align = ("left",) + ("right",) * (len(cells[0]) - 1)
    return tabulate(cells, "keys", tablefmt="github", disable_numparse=True, colalign=align)


def format_parts(rows: Sequence[Row], versions: Sequence[str] = VERSIONS) -> str:
    """The parts of the rows' runs as a Markdown table; empty if none has any."""
    cells = []
    for row in rows:
        totals = [sum(seconds) for seconds in zip(*row.parts.values())]
        for part, pair in row.parts.items():
            columns = {"case": row.case, "part": part}
            for name, seconds, total in zip(versions, pair, totals):
                columns[f"{name} ms"] = _digits(1000 * seconds) if seconds else "-"
                columns[f"{name} share"] = f"{seconds / total:.1%}" if seconds else "-"
            cells.append(columns)
    align = ("left", "left", "right", "right", "right", "right")
    return tabulate(cells, "keys", tablefmt="github", disable_numparse=True, colalign=align)


def guard(parser: argparse.ArgumentParser, file: Path) -> int:
    """Run the commands of a file, and print of each ratio whether it is as the file expects."""
    cells, agree = [], True
    for line, expected in yaml.safe_load(file.read_text()).items():
        args = parser.parse_args(line.split())
        rows = measure(parser, args)
        agree &= all_agree(rows)
        cells += [
            {
                "benchmark": args.command,
                "case": row.case,
                "time ratio": _digits(row.time_ratio),
                "memory ratio": _format_memory_ratio(row),
                "verdict": judge(row, expected.get(row.case)),
            }
            for row in rows
        ]
    print(tabulate(cells, "keys", tablefmt="github", disable_numparse=True))
    return 0 if agree else 1


def judge(row: Row, expected: dict[str, tuple[float, float]] | None) -> str:
    """Say of each ratio, "time" or "memory", whether it lies in the range expected of it."""
    if expected is None:
        return "a new case: give it ranges"
    said = []
    for ratio, name, worse, better in (
        (row.time_ratio, "time", "slower", "faster"),
        (row.memory_ratio, "memory", "more memory", "less memory"),
    ):
        low, high = expected.get(name, (-math.inf, math.inf))
        if ratio is not None and not low <= ratio <= high:
            said.append(
                f"{worse if ratio < low else better} than expected: {_digits(ratio)}, "
                f"expected {low:g} to {high:g}"
            )
    return "; ".join(said) or "as expected"


def draw_growth(args: argparse.Namespace) -> int:
    """Measure curves, print and draw them."""
    torch.manual_seed(0)
    curves = list(growth.run(args))
    cells = [
        {
            "part": curve.part,
            "against": curve.axis,
            "sizes": ", ".join(map(str, curve.sizes)),
            "ms": ", ".join(_digits(1000 * seconds) for seconds in curve.seconds),
            "exponent": f"{curve.exponent:.2f}",
            "of the last step": f"{curve.last_exponent:.2f}",
        }
        for curve in curves
    ]
    print(tabulate(cells, "keys", tablefmt="github", disable_numparse=True))
    growth.draw(curves, args.output)
    return 0


def measure(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Row]:
    """Run a command; what it cannot do ends the program with a message."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if args.device == "cuda" and args.clock == "processor":
        parser.error("--clock processor does not see the work of a GPU")
    torch.manual_seed(0)
    try:
        return list(COMMANDS[args.command][0].run(args))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def all_agree(rows: Sequence[Row]) -> bool:
    """Whether both versions compute the same in all rows; the error is printed."""
    # Written so that NaN fails, too.
    agree = all(row.deviation <= TOLERANCE for row in rows)
    if not agree:
        print("error: the two versions do not compute the same", file=sys.stderr)
    return agree


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    on_gpu = args.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "threads": args.threads,
        "clock": args.clock,
        "repeat": args.repeat,
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "guard":
        return guard(parser, args.file)
    if args.command == "growth":
        return draw_growth(args)
    implementation, _ = COMMANDS[args.command]
    if args.json:  # an error now, not after the work
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    rows = measure(parser, args)
    versions = getattr(implementation, "VERSIONS", VERSIONS)
    about = environment(args)
    print(f"{args.command}: {implementation.COMPARES}\n")
    print(format_table(rows, versions))
    if any(row.parts for row in rows):
        print("\n" + format_parts(rows, versions))
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if args.json:
        report = {"command": args.command, "environment": about, "rows": _as_json(rows, versions)}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all_agree(rows) else 1


def _add_option(command: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """An option of positive numbers, where no other type is given, or a switch."""
    if "action" not in settings:
        settings.setdefault("type", at_least(1))
    command.add_argument(name, **settings)


def _cells(row: Row, versions: Sequence[str]) -> dict[str, str]:
    milliseconds = [1000 * median(seconds) for seconds in row.seconds]
    return {
        "case": row.case,
        **{f"{name} ms": _digits(value) for name, value in zip(versions, milliseconds)},
        "time ratio": _digits(row.time_ratio),
        **{f"{name} MiB": _format_mib(value) for name, value in zip(versions, row.mib)},
        "memory ratio": _format_memory_ratio(row),
        "deviation": f"{row.deviation:.1e}",
        **row.extra,
    }


def _digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _format_mib(mib: float | None) -> str:
    if mib is None:
        return "-"
    return f"{mib:.0f}" if mib >= 1 else "<1"


def _format_memory_ratio(row: Row) -> str:
    if row.memory_ratio is None:
        return "-"
    return ">" * (row.mib[1] < 1) + _digits(row.memory_ratio)


def _as_json(rows: Sequence[Row], versions: Sequence[str]) -> list[dict[str, Any]]:
    def by_version(pair: Sequence[Any]) -> dict[str, Any]:
        return {name.lower(): value for name, value in zip(versions, pair)}

    return [
        {
            **asdict(row),
            "seconds": by_version(row.seconds),
            "mib": by_version(row.mib),
            "parts": {part: by_version(pair) for part, pair in row.parts.items()},
        }
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
