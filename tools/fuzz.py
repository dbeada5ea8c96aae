#!/usr/bin/env python
"""Try what mutated files do: COCO's annotations, descriptions of datasets, configs.

    python tools/fuzz.py                                     # what "make fuzz" runs
    python tools/fuzz.py --coco 200 --yaml 0 --config 0 --seed 7
    python tools/fuzz.py --seed 7 --case coco 12 --output output/case    # one case again

Each file is used as a user would: a dataset is checked, learned from and evaluated on; a config
trains for an iteration. A case fails if it crashes its process, takes longer than --seconds or more
memory than --memory, or ends with an error that is not ours: ours are raised in this project, with
a message. A failed case is printed with what repeats it. The exit status is 1 if a case has failed.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fuzzing.cases import KINDS, Case, run_case
from fuzzing.workers import run_cases

from sgr.data.threads import available_cores
from sgr.engine.setup import at_least
from sgr.evaluation.json_file import write_json

_NUMBERS = {"coco": 2000, "yaml": 1500, "config": 1000}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, number in _NUMBERS.items():
        parser.add_argument(
            f"--{kind}", type=int, default=number, metavar="N", help="cases; default: %(default)s"
        )
    parser.add_argument("--seed", type=int, help="default: a new one each time, which is printed")
    parser.add_argument(
        "--case", nargs=2, metavar=("KIND", "NUMBER"), help="run only this one, in this process"
    )
    parser.add_argument(
        "--jobs", type=at_least(1), default=available_cores(), metavar="N", help="cases at a time"
    )
    parser.add_argument("--seconds", type=float, default=30, help="limit of a case; %(default)s")
    parser.add_argument(
        "--memory", type=int, default=2048, metavar="MIB", help="limit of a case; %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="with --case: the folder for its files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for figures and failures")
    args = parser.parse_args(arguments)
    if args.case and args.seed is None:
        parser.error("--case needs the --seed of its run")
    if args.case and (args.case[0] not in KINDS or not args.case[1].isdigit()):
        parser.error(f"--case is one of {', '.join(KINDS)} and a number, not {args.case}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases; the exit status."""
    args = parse_args(arguments)
    if args.case:
        case = Case(args.case[0], args.seed, int(args.case[1]))
        for message in run_case(case, args.output):
            print(message)
        print(f"{case}: all is well" + (f"; its files are in {args.output}" * bool(args.output)))
        return 0
    seed = random.randrange(10**6) if args.seed is None else args.seed
    cases = [Case(kind, seed, n) for kind in KINDS for n in range(getattr(args, kind))]
    print(f"{len(cases)} cases of seed {seed}", flush=True)
    figures = {kind: Counter() for kind in KINDS}
    failures, memory, slowest, start = [], 0.0, (0.0, ""), time.monotonic()
    shown, known = start, set()
    outcomes = run_cases(
        run_case, cases, jobs=args.jobs, seconds=args.seconds, memory=args.memory * 2**20
    )
    for done, outcome in enumerate(outcomes, 1):
        case = outcome.case
        end = "failed" if outcome.fault else "refused" if outcome.told else "accepted"
        figures[case.kind][end] += 1
        memory, slowest = max(memory, outcome.memory), max(slowest, (outcome.seconds, str(case)))
        if outcome.fault:
            failures.append({"case": str(case), "fault": outcome.fault})
            again = f"again: python tools/fuzz.py --seed {seed} --case {case.kind} {case.number}"
            # Two faults of one kind differ in numbers and in memory.
            alike = re.sub(r"\d+|/tmp/\S+", "", outcome.fault)
            is_new = alike not in known
            known.add(alike)
            print(f"\n{outcome.fault}\n{again}" if is_new else again, flush=True)
        now = time.monotonic()
        if now - shown > 10:
            shown = now
            left = (now - start) / done * (len(cases) - done)
            print(
                f"{done} of {len(cases)}, {len(failures)} failed; about {left / 60:.1f} min left",
                flush=True,
            )
    seconds = time.monotonic() - start
    for kind, counts in figures.items():
        told = ", ".join(f"{counts[end]} {end}" for end in ("accepted", "refused", "failed"))
        print(f"{kind}: {counts.total()} cases, {told}")
    print(
        f"seed {seed}: {seconds:.0f} s; the slowest case, {slowest[1]}, took {slowest[0]:.1f} s, "
        f"the largest process had {memory:.0f} MiB"
    )
    if args.json:
        write_json(args.json, {"seed": seed, "figures": figures, "failures": failures})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
