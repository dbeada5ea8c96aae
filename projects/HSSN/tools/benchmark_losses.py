#!/usr/bin/env python
"""Time and memory of the losses of a tree beside the cross entropy of a plain head.

    python projects/HSSN/tools/benchmark_losses.py --size 512 1024

computes each loss and its gradient from logits at stride 4 of one image with the classes and the
tree of a dataset. Memory is that of tensors at their peak, beyond logits and labels.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

import sgr.engine  # noqa: F401 (registers the datasets)
from hssn import TreeLoss
from sgr.data.class_tree import ClassTree
from sgr.modeling.per_pixel import CrossEntropyLoss

STRIDE = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "tree-min": {"ce_weight": 0.0},
    "focal tree-min": {"ce_weight": 0.0, "loss": "focal_tree_min"},
    "cross entropy of each level": {"weight": 0.0},
    "tree-min and cross entropies": {},
}


def peak_mib(events) -> float:
    """The most bytes that were allocated at a time, of the profiler's memory events."""
    current = peak = 0
    memory = [event for event in events if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak / 2**20


def measure(loss, logits, labels, repeat: int) -> tuple[float, float]:
    """Median seconds, and MiB."""

    def step() -> None:
        logits.grad = None
        sum(loss(logits, labels, STRIDE, features=logits).values()).backward()

    step()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as result:
        step()
    assert result.profiler is not None
    return sorted(seconds)[repeat // 2], peak_mib(result.profiler.kineto_results.events())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--dataset", default="cityscapes_fine_sem_seg_train")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(arguments)
    metadata = MetadataCatalog.get(args.dataset)
    tree = ClassTree.parse(metadata.class_tree, metadata.stuff_classes)
    labels = torch.randint(tree.num_classes, (1, *args.size))
    losses = {"cross entropy of a plain head": CrossEntropyLoss(tree.num_classes)}
    losses |= {
        name: TreeLoss(tree.num_classes, tree=tree, **options) for name, options in OPTIONS.items()
    }
    rows = []
    for name, loss in losses.items():
        size = (side // STRIDE for side in args.size)
        logits = torch.randn(1, loss.num_outputs, *size, requires_grad=True)
        seconds, mib = measure(loss, logits, labels, args.repeat)
        rows.append((name, loss.num_outputs, f"{1000 * seconds:.0f}", f"{mib:.0f}"))
    print(tabulate(rows, ["loss", "channels", "ms", "MiB"], "pipe"))


if __name__ == "__main__":
    main()
