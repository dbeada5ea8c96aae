#!/usr/bin/env python
"""Train or evaluate a model, with or without SGR.

    python train_net.py --config-file configs/... --num-gpus 2 [--resume] [--eval-only] [KEY VALUE]
"""

import torch
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from sgr.engine import Trainer, argument_parser, evaluate, setup_config


def main(args):
    cfg = setup_config(args)
    default_setup(cfg, args)
    if args.eval_only:
        results = evaluate(cfg, allow_pickle=args.allow_pickle, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg, allow_pickle=args.allow_pickle)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    if not torch.cuda.is_available():
        args.num_gpus = 0  # one process; setup_config says so
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
