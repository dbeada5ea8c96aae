"""``sgr-train`` and ``python -m sgr``: what train_net.py does, also where there is no checkout."""

from .engine import argument_parser, launch, setup_config, train_or_evaluate


def main(args):
    return train_or_evaluate(setup_config(args), args)


def run() -> None:
    launch(main, argument_parser().parse_args())


if __name__ == "__main__":
    run()
