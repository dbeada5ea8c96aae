#!/usr/bin/env python
"""Time and weigh global semantic attention beside its literal form, which stores all scores.

    python projects/SeMask/tools/benchmark_layer.py
    python projects/SeMask/tools/benchmark_layer.py --device cuda --image 640 2560 --scale 1.75

The case is stage 3 of SeMask-L (C 768, 150 classes, stride 16) on an image of 640 x 2560 pixels.
Columns are those of tools/benchmark.py: the median time in ms, the peak of memory beyond the inputs
in MiB, and the largest deviation relative to the largest value.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from semask.semantic_layer import MAX_SCORES, SemanticAttention, attend

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from benchmarks.measure import compare  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", nargs=2, type=int, default=(640, 2560), help="pixels")
    parser.add_argument("--scale", nargs="+", type=float, default=[1.0, 1.75], help="of the image")
    parser.add_argument("--channels", type=int, default=768, help="C")
    parser.add_argument("--classes", type=int, default=150, help="K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="timed runs")
    parser.set_defaults(clock="wall")
    return parser.parse_args(argv)


def forward(block: SemanticAttention, cells: Tensor, max_scores: int) -> list[Tensor]:
    query, key, value = block.mlp_cls_q(cells), block.mlp_cls_k(cells), block.mlp_v(cells)
    mixed = attend(query, key, value, max_scores)
    return [query, cells + block.gamma * block.mlp_res(mixed)]


def inference(block: SemanticAttention, cells: Tensor, max_scores: int) -> list[Tensor]:
    with torch.no_grad():
        return forward(block, cells, max_scores)


def training(block: SemanticAttention, cells: Tensor, max_scores: int) -> list[Tensor]:
    block.zero_grad()
    semantic, features = forward(block, cells, max_scores)
    (semantic.square().mean() + features.square().mean()).backward()
    # Not the biases: the gradient of that of mlp_cls_k is 0, and comes out as rounding.
    weights = (block.mlp_cls_q, block.mlp_cls_k, block.mlp_v, block.mlp_res)
    return [linear.weight.grad for linear in weights]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.manual_seed(0)
    block = SemanticAttention(args.channels, args.classes, learn_scale=False).to(args.device)
    print("| | literal ms | in parts ms | literal MiB | in parts MiB | deviation |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for scale in args.scale:
        height, width = (round(side * scale / 16) for side in args.image)
        cells = torch.randn(1, 1, height * width, args.channels, device=args.device)
        for name, run in (("inference", inference), ("training step", training)):
            literal, ours = (partial(run, block, cells, most) for most in (sys.maxsize, MAX_SCORES))
            row = compare(f"{name}, {height} x {width} cells", literal, ours, args)
            times = [1000 * median(seconds) for seconds in row.seconds]
            numbers = [f"{value:.0f}" for value in (*times, *row.mib)]
            print("|", " | ".join([row.case, *numbers, f"{row.deviation:.1g}"]), "|", flush=True)


if __name__ == "__main__":
    main()
