#!/usr/bin/env python
"""Train or evaluate a model, with or without SGR.

python train_net.py --config-file configs/... --num-gpus 2 [--resume] [--eval-only] [KEY VALUE]
"""

from sgr.__main__ import main
from sgr.engine import argument_parser, launch

if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
