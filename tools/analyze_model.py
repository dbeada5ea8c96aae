#!/usr/bin/env python
"""Count a model's multiply-adds and parameters, and the share of its reasoning modules.

    python tools/analyze_model.py \
        --config-file configs/coco-stuff-10k-171/maskformer_R101_sgr_bs16_78750.yaml
    python tools/analyze_model.py --table-a    # the paper's models, beside the paper's numbers

Inference of one square image is counted from the image to the result at the image's size. A
multiply-add is one flop. Normalisation and interpolation count, other elementwise operations do
not, as in fvcore. fvcore leaves out the two products inside fused attention, so they have a line of
their own. The predictions of a mask classifier's inner decoder layers have one too: only the losses
need them and inference leaves them out, but published counts include them. No checkpoint is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import detectron2  # noqa: F401 (before fvcore, whose warnings it keeps back)
import torch
from fvcore.nn import FlopCountAnalysis, parameter_count
from fvcore.nn.jit_handles import get_shape
from tabulate import tabulate
from torch import Tensor, nn

from sgr.engine.setup import add_mixins_flag
from sgr.load import load_model
from sgr.modeling.reasoning import ReasoningModule

_ATTENTION = "attention"
_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "coco-stuff-10k-171"
# Table a: method, our config, and the paper's GFLOPs at 512 x 512.
_TABLE_A = (
    ("Dil-FCN", "fcn_R101_bs16_78750.yaml", 224),
    ("Dil-FCN + SGR", "fcn_R101_sgr_bs16_78750.yaml", 236),
    ("MaskFormer", "maskformer_R101_bs16_78750.yaml", 75),
    ("MaskFormer + SGR", "maskformer_R101_sgr_bs16_78750.yaml", 80),
)


@dataclass
class Cost:
    """Cost of a model or of a part of it.

    Attributes:
        gflops: multiply-adds, in 10^9, as fvcore counts.
        attention_gflops: multiply-adds of the two products of fused attention, in 10^9. fvcore does
            not count them, so ``gflops`` does not include them.
        auxiliary_gflops: multiply-adds, in 10^9, of the predictions of inner decoder layers, which
            inference does not make.
        params_m: parameters, in 10^6.
    """

    gflops: float
    attention_gflops: float
    auxiliary_gflops: float
    params_m: float

    @property
    def published_gflops(self) -> float:
        """The sum of all three, as in the counts of the public models."""
        return self.gflops + self.attention_gflops + self.auxiliary_gflops


@dataclass
class ModelCost:
    """Cost of a model, and of its reasoning modules as a part of it.

    Attributes:
        size: side of the square image, pixels.
        model: the whole.
        reasoning: the reasoning modules.
        uncounted_ops: operations that the count leaves out -> how often they were called.
    """

    size: int
    model: Cost
    reasoning: Cost
    uncounted_ops: dict[str, int]


class SemanticInference(nn.Module):
    """The traced function: from an image to its scores, both plain tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        result = self.model([{"image": image}])[0]
        if "sem_seg" not in result:
            raise ValueError(
                f"{type(self.model).__name__} gives {sorted(result)} but no 'sem_seg'; only "
                "models of semantic segmentation can be counted"
            )
        return result["sem_seg"]


def analyze(model: nn.Module, size: int = 512) -> ModelCost:
    """Count a meta-architecture's inference of one image.

    Args:
        model: a Detectron2 meta-architecture. It is put into evaluation mode.
        size: side of the square image, pixels.

    Raises:
        ValueError: the model does not give semantic segmentation.
    """
    traced = SemanticInference(model).eval()
    params_by_module = parameter_count(traced)
    with torch.no_grad(), _plain_attention():
        flops = _count(traced, size)
        flops_by_module = flops.by_module_and_operator()
        uncounted = flops.unsupported_ops()
        with _auxiliary_predictions(model):
            flops_with_auxiliary = _count(traced, size).by_module_and_operator()

    def cost(names: list[str]) -> Cost:
        counts, with_auxiliary = (
            sum((by_module[name] for name in names), Counter())
            for by_module in (flops_by_module, flops_with_auxiliary)
        )
        attention = counts.pop(_ATTENTION, 0)
        with_auxiliary.pop(_ATTENTION, None)
        total = sum(counts.values())
        auxiliary = sum(with_auxiliary.values()) - total
        params = sum(params_by_module[name] for name in names)
        return Cost(total / 1e9, attention / 1e9, auxiliary / 1e9, params / 1e6)

    reasoning = [n for n, m in traced.named_modules() if isinstance(m, ReasoningModule)]
    return ModelCost(size, cost([""]), cost(reasoning), dict(sorted(uncounted.items())))


def format_table(cost: ModelCost) -> str:
    """Format the cost as a table, with the operations that do not count below it."""
    names = {
        "gflops": "GFLOPs (fvcore)",
        "attention_gflops": "+ attention products",
        "auxiliary_gflops": "+ auxiliary predictions",
        "published_gflops": "= GFLOPs as published",
        "params_m": "parameters (M)",
    }
    rows = []
    for key, name in names.items():
        whole, part = getattr(cost.model, key), getattr(cost.reasoning, key)
        rows.append([name, f"{whole:.2f}", f"{part:.2f}", f"{part / whole if whole else 0:.1%}"])
    headers = [f"{cost.size} x {cost.size}", "model", "of it reasoning", "share"]
    table = tabulate(rows, headers, disable_numparse=True, colalign=("left",) + ("right",) * 3)
    ops = ", ".join(f"{name} x{count}" for name, count in cost.uncounted_ops.items())
    return f"{table}\n\nnot counted: {ops or 'nothing'}"


def format_table_a(costs: Sequence[ModelCost]) -> str:
    """Format the costs of the models of the paper's Table a beside the paper's numbers."""
    rows = []
    for (method, _, paper), cost in zip(_TABLE_A, costs, strict=True):
        model = cost.model
        rows.append(
            [
                method,
                f"{model.published_gflops:.2f}",
                paper,
                f"{cost.reasoning.gflops:.2f}",
                f"{cost.reasoning.attention_gflops:.2f}",
                f"{model.params_m:.2f}",
            ]
        )
    headers = ["Table a", "GFLOPs", "paper", "of it SGR", "and its attention", "parameters (M)"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left",) + ("right",) * 5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", help="the model's YAML file")
    what.add_argument("--table-a", action="store_true", help="all models of the paper's Table a")
    add_mixins_flag(parser)
    parser.add_argument("--size", type=int, default=512, help="side of the square image, pixels")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    args = parser.parse_args(argv)

    def cost_of(config_file: str) -> ModelCost:
        # The counts do not depend on the device, and every machine has this one.
        model, _ = load_model([config_file, *args.mixins], "", *args.opts, "MODEL.DEVICE", "cpu")
        return analyze(model, args.size)

    if args.table_a:
        costs = [cost_of(str(_CONFIGS / file)) for _, file, _ in _TABLE_A]
        content, table = [asdict(cost) for cost in costs], format_table_a(costs)
    else:
        cost = cost_of(args.config_file)
        content, table = asdict(cost), format_table(cost)
    print(json.dumps(content, indent=2) if args.json else table)
    return 0


def _count(traced: nn.Module, size: int) -> FlopCountAnalysis:
    flops = FlopCountAnalysis(traced, torch.zeros(3, size, size))
    flops.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return flops


@contextmanager
def _auxiliary_predictions(model: nn.Module) -> Iterator[None]:
    """Let predictors predict from inner layers too, as they do in training."""
    predictors = [
        module for module in model.modules() if getattr(module, "predicts_inner_layers", False)
    ]
    for predictor in predictors:
        predictor.train()
    try:
        yield
    finally:
        for predictor in predictors:
            predictor.eval()


def _attention_flops(inputs: list, outputs: list) -> Counter:
    """Count two products: of queries with keys, and of weights with values."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return Counter({_ATTENTION: prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off the fused operation of torch's transformer layers, which hides its parts."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


if __name__ == "__main__":
    sys.exit(main())
