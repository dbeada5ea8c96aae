#!/usr/bin/env python
"""Train or evaluate a model, with or without SGR.

python train_net.py --config-file configs/... --num-gpus 2 [--resume] [--eval-only] [KEY VALUE]
"""

from sgr.engine import argument_parser, launch, setup_config, train_or_evaluate


def main(args):
    return train_or_evaluate(setup_config(args), args)


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
