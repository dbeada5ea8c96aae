"""``sgr-train`` and ``python -m sgr``: what train_net.py does, also where there is no checkout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from .checkpoints.trained import TrainedCheckpointer
from .engine import Trainer, argument_parser, launch, setup_config, train_or_evaluate
from .explorer import ExplorerModel, check_folder, explore_dataset, model_name


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train or evaluate; after an evaluation, write the explorer that ``--explorer`` asks for."""
    if args.explorer and not args.eval_only:
        raise ValueError("--explorer shows a trained model: add --eval-only")
    if args.explorer:
        check_folder(args.explorer)  # before the evaluation
    name = model_name(args.config_file)  # which becomes a file of the folder
    cfg = setup_config(args)
    results = train_or_evaluate(cfg, args)
    if args.explorer and comm.is_main_process():
        _explore(cfg, args, name)
    return results


def _explore(cfg: CfgNode, args: argparse.Namespace, name: str) -> None:
    model = Trainer.build_model(cfg).eval()
    # The checkpoint that was evaluated.
    checkpointer = TrainedCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=args.allow_pickle)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    shown = ExplorerModel(name, model, cfg)
    report = explore_dataset(args.explorer, [shown], cfg.DATASETS.TEST[0], 200)
    print(f"{report}: open {Path(args.explorer) / 'index.html'} in a browser")


def run() -> None:
    launch(main, argument_parser().parse_args())


if __name__ == "__main__":
    run()
