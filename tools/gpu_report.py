#!/usr/bin/env python
r"""Try the project on a GPU and write what it measured into one file.

    python tools/gpu_report.py [--output output/gpu_report] [--minutes 8]
    DETECTRON2_DATASETS=... python tools/gpu_report.py --sections tests training --config CONFIG

The sections, in this order:

    tests       the tests that need a GPU
    steps       time, memory, images per second and waits for the GPU of a training step and of
                inference, with and without SGR, in float32 and autocast: benchmark.py step
    attention   deformable attention beside grid_sample, and compiled: benchmark.py
    scales      inference at several scales: benchmark.py multi-scale
    switches    a training step of the first model with SGR under autocast, without and with
                MODEL.CHANNELS_LAST and MODEL.COMPILE
    training    as many iterations of --config as fit into the time that is left

Each command is a process of its own. What fails, or does not fit into the time, is said in the
report, and the others go on. OUTPUT/report.md is written again after each command, and
OUTPUT/NAME.txt has all that a command printed. The exit status is 1 if a command failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# With SGR, and without.
MODELS = {
    "maskformer": (
        "configs/coco-stuff-10k-171/maskformer_R101_sgr_bs16_78750.yaml",
        "configs/coco-stuff-10k-171/maskformer_R101_bs16_78750.yaml",
    ),
    "mask2former": (
        "configs/ade20k-150/mask2former_R101_sgr_bs16_160k.yaml",
        "configs/ade20k-150/mask2former_R101_bs16_160k.yaml",
    ),
    "fcn": (
        "configs/coco-stuff-10k-171/fcn_R101_sgr_bs16_78750.yaml",
        "configs/coco-stuff-10k-171/fcn_R101_bs16_78750.yaml",
    ),
    "small_fcn": (
        "configs/shapes/small_fcn.yaml+configs/mixins/sgr_in_head.yaml",
        "configs/shapes/small_fcn.yaml",
    ),
}
SECTIONS = ("tests", "steps", "attention", "scales", "switches", "training")
# The exit status of a training that saved a checkpoint and stopped, PREEMPTED in
# sgr.engine.preemption. This tool does not import sgr: what fails there belongs into the report.
STOPPED = 75
SECONDS_TO_SAVE = 30


@dataclass
class Part:
    """A command of the report.

    Attributes:
        name: of its section in the report, and of the file with what it prints.
        command: the arguments after the interpreter.
        stops: whether it is a training, which is stopped when the time is over.
    """

    name: str
    command: list[str]
    stops: bool = False


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/gpu_report"))
    parser.add_argument("--minutes", type=float, default=8, help="time for all (default: 8)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:3])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=512, help="side of a crop, pixels")
    parser.add_argument("--images", type=int, default=8, help="images of a step")
    parser.add_argument("--repeat", type=int, default=7, help="timed steps of each model")
    parser.add_argument(
        "--config",
        default="configs/camvid-11/small_maskformer.yaml+configs/mixins/sgr.yaml",
        help="FILE[+MIXIN...] for the section training",
    )
    return parser


def plan(args: argparse.Namespace) -> Iterator[Part]:
    """The commands that the arguments ask for."""
    bench = ["tools/benchmark.py"]
    sizes = ["--size", args.size, "--images", args.images, "--repeat", args.repeat]
    if "tests" in args.sections:
        yield Part("tests", ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"])
    if "steps" in args.sections:
        for model in args.models:
            cases = ["--work", "training", "inference", "--precision", "float32", "autocast"]
            command = [*bench, "step", "--configs", *MODELS[model], *sizes, *cases]
            yield Part(f"steps of {model}", [*map(str, command), "--device", args.device])
    if "attention" in args.sections:
        cells = str(args.size // 32)
        command = [*bench, "deformable-attention", "--batch", str(args.images), "--cells"]
        command += [str(4 * int(cells)), str(2 * int(cells)), cells]
        compiled = ["--compile"] if args.device == "cuda" else []
        yield Part("attention", [*command, "--device", args.device, *compiled])
    if "scales" in args.sections:
        size = ["--size", str(args.size), str(args.size), "--input", str(args.size)]
        yield Part("scales", [*bench, "multi-scale", *size, "--device", args.device])
    if "switches" in args.sections:
        for key in ("MODEL.CHANNELS_LAST", "MODEL.COMPILE"):
            configs = [f"{MODELS[args.models[0]][0]}+{key}={on}" for on in (False, True)]
            command = [*bench, "step", "--configs", *configs, *sizes, "--precision", "autocast"]
            yield Part(f"switch {key}", [*map(str, command), "--device", args.device])
    if "training" in args.sections:
        # The command runs in the folder of the project, but a file may be one of this folder.
        config, *mixins = (
            str(Path(part).resolve()) if Path(part).is_file() else part
            for part in args.config.split("+")
        )
        command = ["train_net.py", "--config-file", config]
        command += [part for mixin in mixins for part in ("--with", mixin)]
        options = ["MODEL.DEVICE", args.device, "OUTPUT_DIR", str(args.output / "training")]
        yield Part("training", [*command, *options], stops=True)


def run(part: Part, seconds: float, log: Path) -> int | None:
    """Run a command; its exit status, or None if it did not end in the given seconds."""
    env = dict(os.environ)
    if root := env.get("DETECTRON2_DATASETS"):  # which may be relative to the current folder
        env["DETECTRON2_DATASETS"] = str(Path(root).expanduser().resolve())
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *part.command],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its workers can be stopped with it
        )
        try:
            limit = seconds - SECONDS_TO_SAVE if part.stops else seconds
            return process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            if part.stops:
                process.terminate()
                try:
                    return process.wait(SECONDS_TO_SAVE)
                except subprocess.TimeoutExpired:
                    pass
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def excerpt(part: Part, text: str) -> str:
    """What the report shows of what a command printed: its tables, or its last lines."""
    lines = text.splitlines()
    tables = [
        line
        for line, previous in zip(lines, ["", *lines])
        if line.startswith("|") or (not line and previous.startswith("|"))
    ]
    if tables and not part.stops:
        return "\n".join(tables)
    progress = [line for line in lines if part.stops and "iter: " in line]
    return "\n".join(f"    {line}" for line in (progress or lines)[-5:])


def describe(part: Part, status: int | None, seconds: float, log: Path) -> str:
    end = f"{seconds:.0f} s"
    if status is None:
        end += "; **did not end in the time**"
    elif part.stops and status == STOPPED:
        end += "; stopped when the time was over"
    elif status:
        end += f"; **failed with status {status}**"
    command = shlex.join(["python", *part.command])
    text = excerpt(part, log.read_text(errors="replace"))
    return f"## {part.name}\n\n    {command}\n\n{text}\n\n{end}\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu tries the report on the CPU")
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    sections = [f"# {card}, torch {torch.__version__}, Python {platform.python_version()}\n"]
    failed = False
    end = time.monotonic() + 60 * args.minutes
    parts = list(plan(args))
    for number, part in enumerate(parts, 1):
        start = time.monotonic()
        left = end - start
        print(f"{number} of {len(parts)}: {part.name}; {left:.0f} s left", flush=True)
        if left < 1:
            sections.append(f"## {part.name}\n\n**not run: the time was over**\n")
        else:
            log = args.output / f"{part.name.replace(' ', '_')}.txt"
            status = run(part, left, log)
            sections.append(describe(part, status, time.monotonic() - start, log))
            failed |= status not in ((0, STOPPED) if part.stops else (0,))
        (args.output / "report.md").write_text("\n".join(sections))
    print((args.output / "report.md").read_text())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
