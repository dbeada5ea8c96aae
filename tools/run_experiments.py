#!/usr/bin/env python
r"""Train several configs with several seeds, and compare them in one table and one picture.

    python tools/run_experiments.py --configs configs/shapes/maskformer_R50_sgr.yaml \
        plain=configs/shapes/maskformer_R50_sgr_wo_concept_losses.yaml \
        --seeds 0 1 2 --output output/ablation [--jobs 2] [KEY VALUE ...]

Every run is a train_net.py of its own in the folder OUTPUT/NAME/seed_SEED. Its file console.txt
keeps what it prints. If a run fails, the others go on. The same command again goes on where it was
interrupted, tries failed runs once more and does not repeat finished runs. It is an error if a
folder holds a training with another config. After each run, and with --report-only, it writes

    results.md     one row for each config: mean ± standard deviation at the end of training
    results.csv    one row for each run
    results.png    a dot for each run, their mean and standard deviation

FILE+MIXIN merges a config over another, as train_net.py --with does; several are possible:

    python tools/run_experiments.py --configs configs/camvid-11/small_fcn.yaml \
        sgr=configs/camvid-11/small_fcn.yaml+configs/mixins/sgr_in_head.yaml \
        --seeds 0 1 2 --output output/camvid

--weights NAME=FILE sets the file, or the model folder, that the runs of a config start from; {seed}
in FILE stands for the seed. So a second stage (a detector) can start from the first stage with the
same seed,

    python tools/run_experiments.py --configs configs/shapes/maskformer_R50_sgr.yaml \
        --seeds 0 1 --output output/first
    for seed in 0 1; do
        python tools/extract_backbone.py \
            output/first/maskformer_R50_sgr/seed_$seed/model_final.pth output/backbone_$seed.pth
    done
    python tools/run_experiments.py --configs sgr=configs/shapes/mask_rcnn_R50_sgr.yaml \
        --weights sgr=output/backbone_{seed}.pth --seeds 0 1 --output output/second

--baseline NAME adds to results.md how much the mIoU of the other configs, and the IoU of each
class, differ from those of this config, with a test that resamples the images. The evaluations must
count the pixels of each image, of a single test set: end the command with TEST.EVALUATORS
"['ImageIoUEvaluator']".

Options at the end change all configs, as in train_net.py. After a list (of configs, weights, seeds
or metrics), write -- before them. The exit status is 1 if a run failed, and 130 after Ctrl-C, on
which the runs finish their iteration and save. The tool works on Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from sgr.engine.setup import add_safety_flags, at_least

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also when loaded from elsewhere
from experiments.bootstrap import check_baseline, compare_to_baseline  # noqa: E402
from experiments.processes import (  # noqa: E402
    Launcher,
    Pool,
    describe_end,
    interruptible,
    locked,
)
from experiments.progress import Progress  # noqa: E402
from experiments.results import collect, measured, write_report  # noqa: E402
from experiments.runs import (  # noqa: E402
    Run,
    check_unchanged,
    check_weights,
    parse_configs,
    parse_weights,
    plan_runs,
    status,
)

METRICS = [
    *("sem_seg/mIoU", "tokens/S_C", "tokens/D_C", "tokens/S_I", "tokens/D_I"),
    *("bbox/AP", "segm/AP", "panoptic_seg/PQ"),
]
SECONDS_BETWEEN_LOOKS = 0.5
LINES_OF_A_FAILURE = 15


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--configs",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE[+MIXIN...]",
        help="without NAME, the config has the name of the file",
    )
    add("--seeds", nargs="+", type=int, required=True, metavar="SEED")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of runs and results")
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="the file that the runs of a config start from; {seed} stands for the seed",
    )
    add("--jobs", type=at_least(1), default=1, metavar="N", help="runs at a time (default: 1)")
    add(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="CPU threads of a run (default: PyTorch's number divided by the jobs)",
    )
    add(
        "--num-gpus",
        type=at_least(1),
        default=1,
        metavar="N",
        help="GPUs of a run; jobs use different ones if there are enough (default: 1)",
    )
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="columns of the table, by their names in metrics.json, also of the training's last "
        "iteration (sgr/token_similarity); those that no run has are left out "
        f"(default: {' '.join(METRICS)})",
    )
    add("--baseline", metavar="NAME", help="the config that the others are compared with")
    add("--report-only", action="store_true", help="write the results of the finished runs")
    add_safety_flags(parser)
    # Not REMAINDER, because it would keep a -- before the options.
    add("opts", nargs="*", metavar="KEY VALUE", help="changes of all configs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            runs, launcher = plan(args)
            if not args.report_only:
                check_weights(runs)
                launcher = replace(launcher, lock=stack.enter_context(locked(args.output)))
            check_unchanged(runs)
            check_baseline(runs, args.baseline)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        failed = 0
        if not args.report_only:
            stack.enter_context(interruptible())
            try:
                failed = train(runs, launcher, args)
            except KeyboardInterrupt:
                print("\nStopped. The same command goes on from the last checkpoints.")
                return 130
    report(runs, args)
    return 1 if failed else 0


def plan(args: argparse.Namespace) -> tuple[list[Run], Launcher]:
    """Plan all runs, and how to start them.

    Raises:
        FileNotFoundError, ValueError: if the arguments are wrong.
    """
    gpus = visible_gpus()
    if gpus and args.num_gpus > len(gpus):
        raise ValueError(f"--num-gpus {args.num_gpus}: there are {len(gpus)} here")
    configs = parse_configs(args.configs, allow_unsafe=args.allow_unsafe_yaml)
    runs = plan_runs(
        configs,
        args.seeds,
        args.output,
        args.opts,
        weights=parse_weights(args.weights, configs),
        allow_unsafe=args.allow_unsafe_yaml,
    )
    switches = {"--allow-pickle": args.allow_pickle, "--allow-unsafe-yaml": args.allow_unsafe_yaml}
    launcher = Launcher(
        opts=args.opts,
        flags=[flag for flag, given in switches.items() if given],
        num_gpus=args.num_gpus,
        threads=args.threads or max(torch.get_num_threads() // args.jobs, 1),
        gpus=gpus,
    )
    return runs, launcher


def visible_gpus() -> list[str]:
    """The names that CUDA_VISIBLE_DEVICES has for the GPUs of this process."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(index) for index in range(count)]


def train(runs: Sequence[Run], launcher: Launcher, args: argparse.Namespace) -> int:
    """Train all runs that have not finished. Return the number of runs that failed."""
    queue = deque(run for run in runs if status(run) != "finished")
    print(
        f"Runs: {len(runs)}, {len(runs) - len(queue)} of them finished earlier; {args.jobs} at a "
        f"time; CPU threads of each: {launcher.threads}. Results after each: "
        f"{args.output}/results.md"
    )
    with Progress(queue, len(runs) - len(queue)) as progress, Pool(launcher, args.jobs) as pool:
        try:
            while queue or pool.active:
                while queue and pool.has_room:
                    run = queue.popleft()
                    progress.say(start_text(run))
                    pool.start(run)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for run, code in pool.collect():
                    progress.end(run, failed=code != 0)
                    progress.say(end_text(run, code))
                    write_report(collect(runs), args.metrics or METRICS, args.output)
                progress.update(pool.active)
        except KeyboardInterrupt:
            progress.say("Stopping: the runs save; a second Ctrl-C ends them at once")
            raise
    return progress.failed


def start_text(run: Run) -> str:
    """The message for the start of a run."""
    return f"{'Resuming' if run.has_checkpoint else 'Starting'} {run} -> {run.folder}"


def end_text(run: Run, code: int) -> str:
    """The message for the end of a run; for a failed run with the last lines that it printed."""
    if code == 0:
        return f"Finished {run}"
    lines = run.console.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
    text = f"FAILED {run} ({describe_end(code)}); the end of {run.console}:"
    return "\n    ".join([text, *lines])


def report(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Write the results and print the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    outcomes = collect(runs)
    print(write_report(outcomes, args.metrics or METRICS, args.output))
    print(f"\nWritten: results.md, results.csv and, of finished runs, results.png in {args.output}")
    if args.baseline:
        text = compare_to_baseline(runs, outcomes, args.baseline)
        print(f"\n{text}")
        with (args.output / "results.md").open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")
    absent = set(args.metrics or ()) - set(measured(outcomes, args.metrics or ()))
    if absent:
        print(f"No run that has finished has {', '.join(sorted(absent))}")


if __name__ == "__main__":
    sys.exit(main())
