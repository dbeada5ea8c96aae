"""From the command line to a trained and evaluated model."""

from .launch import launch
from .setup import argument_parser, load_config, setup_config
from .trainer import Trainer, evaluate, train_or_evaluate
