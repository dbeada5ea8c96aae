#!/usr/bin/env python
"""Compare the gradients of two groups of a model's losses, part by part of the model.

    python tools/compare_gradients.py --config-file configs/shapes/fcn_R50_sgr.yaml \
        --weights output/shapes/model_*.pth

A training step is made on images of DATASETS.TRAIN, and no parameter is changed. For every part of
the model, which is all parameters whose names begin alike, it prints the norm of the gradient of
the concept losses over that of the other losses, and the cosine between the two: 1 where both pull
the same way, 0 where neither disturbs the other, below 0 where they pull against each other. The
checkpoints of one training show how this changes. Losses of another side criterion are named by
``--losses``. The weights of the losses are in them, but the clipping of gradients is not.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from sgr.engine import Trainer
from sgr.engine.setup import add_mixins_flag, add_safety_flags, at_least
from sgr.load import load_model


class Comparison(NamedTuple):
    """Gradients of one part of a model, means over the batches in which both have some.

    Attributes:
        part: what the names of its parameters begin with.
        ratio: norm of the gradient of the chosen losses over that of the others.
        cosine: between both gradients, -1 to 1.
        deviation: standard deviation of the cosine over the batches; nan for a single batch.
    """

    part: str
    ratio: float
    cosine: float
    deviation: float


def compare_gradients(
    model: nn.Module, batches: Iterable[Any], losses: str = "loss_concept", depth: int = 2
) -> list[Comparison]:
    """Compare the gradients of the losses whose names begin with ``losses`` with all others'.

    Costs a forward pass and two backward passes per batch.

    Args:
        model: in training mode it returns a dict of losses. Its parameters stay as they are; norms
            update their running statistics.
        batches: the model's inputs.
        losses: how the names of the chosen losses begin.
        depth: how many elements of a parameter's name make its part: with 2,
            "backbone.res5.0.conv1.weight" is in the part "backbone.res5".

    Returns:
        A comparison for each part that both groups reach, in the order of the model.

    Raises:
        ValueError: if one of the groups has no loss.
    """
    model.train()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    parts = [".".join(name.split(".")[:depth]) for name in names]
    # Three sums a batch. They stay on the device until all batches are done.
    found = defaultdict(list)
    for batch in batches:
        with EventStorage():
            terms = model(batch)
        chosen = {name for name in terms if name.startswith(losses)}
        if not chosen or chosen == terms.keys():
            raise ValueError(
                f"the losses are {', '.join(sorted(terms))}: {'none' if not chosen else 'each'} "
                f"of them begins with {losses!r}, so there are no two groups"
            )
        gradients = [
            torch.autograd.grad(
                sum(terms[name] for name in group),
                parameters,
                retain_graph=True,
                allow_unused=True,
            )
            for group in (chosen, terms.keys() - chosen)
        ]
        products = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
        for part, one, other in zip(parts, *gradients):
            if one is not None and other is not None:
                one, other = one.double(), other.double()
                products[part] = products[part].to(one.device) + torch.stack(
                    [(one * other).sum(), one.square().sum(), other.square().sum()]
                )
        for part, sums in products.items():
            found[part].append(sums)
    rows = []
    for part, values in found.items():
        all_sums = torch.stack(values).cpu()
        product, one, other = all_sums[(all_sums[:, 1:] != 0).all(dim=1)].T
        ratios, cosines = (one / other).sqrt(), product / (one * other).sqrt()
        rows.append(
            Comparison(part, ratios.mean().item(), cosines.mean().item(), cosines.std().item())
        )
    return rows


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a config, or a model folder")
    add_mixins_flag(parser)
    add(
        "--weights",
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoints of this config; another flag goes before KEY VALUE",
    )
    add("--losses", default="loss_concept", metavar="NAME", help="how their names begin")
    add(
        "--depth",
        type=at_least(1),
        default=2,
        help="elements of a parameter's name that make its part",
    )
    add("--batches", type=at_least(1), default=8, help="of SOLVER.IMS_PER_BATCH images each")
    add_safety_flags(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    setup_logger(name="sgr")
    batches: list[Any] = []
    for file in args.weights:
        model, cfg = load_model(
            [args.config_file, *args.mixins],
            file,
            *("SEED", "0", *args.opts),
            allow_pickle=args.allow_pickle,
            allow_unsafe_yaml=args.allow_unsafe_yaml,
        )
        # The same images and crops for every checkpoint.
        batches = batches or list(islice(Trainer.build_train_loader(cfg), args.batches))
        bar = tqdm(batches, file, disable=None)
        rows = compare_gradients(model, bar, args.losses, args.depth)
        headers = (f"gradients at {file}", "norm ratio", "cosine", "deviation")
        print(tabulate(rows, headers, floatfmt=".3f"))


if __name__ == "__main__":
    main()
