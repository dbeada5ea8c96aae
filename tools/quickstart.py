#!/usr/bin/env python
"""Make a small dataset, train on it, evaluate, and draw pictures, within minutes on a CPU.

    make demo        or        python tools/quickstart.py [--output DIR] [--resume] [KEY VALUE ...]

It makes the Shapes dataset, trains MaskFormer with SGR on it, and writes to DIR (output/demo)

    metrics.json          mIoU, S_C, D_C, S_I and D_I on the validation scenes
    curves.png            these metrics during the training
    pictures/*.png        panels and token histograms of some scenes
    explorer/index.html   what the tokens do in twelve scenes, for a browser (docs/explorer.md)
    train/                what train_net.py writes: log.txt, metrics.json, checkpoints, TensorBoard

Options at the end change the config, as in train_net.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image

from sgr.data.datasets.missing import datasets_root
from sgr.engine.setup import at_least
from sgr.visualization import draw_training_curves, higher_is_better, read_metrics
from sgr.visualization.metric_names import TOKEN_METRICS

ROOT = Path(__file__).resolve().parents[1]
METRICS = {
    "mIoU": "sem_seg/mIoU",
    "S_C": "tokens/S_C",
    "D_C": "tokens/D_C",
    "S_I": "tokens/S_I",
    "D_I": "tokens/D_I",
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train, evaluate and draw MaskFormer with SGR on the Shapes dataset."
    )
    parser.add_argument(
        "--config-file", type=Path, default=ROOT / "configs/shapes/maskformer_R50_sgr.yaml"
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    parser.add_argument("--num-images", type=at_least(1), default=6, help="scenes to draw")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser.parse_args(arguments)


def run(title: str, script: str, *arguments: object) -> None:
    """Run a script of the project, which prints to the terminal.

    Raises:
        SystemExit: if it fails.
        KeyboardInterrupt: after Ctrl-C, when the script has ended.
    """
    print(f"\n== {title}", flush=True)
    command = [sys.executable, "-W", "ignore", str(ROOT / script), *map(str, arguments)]
    # subprocess.run kills the script a quarter of a second after Ctrl-C.
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C has reached the script, too: a training saves
            raise
    if status:
        sys.exit(f"{script} has ended with status {status}, see above")


@contextmanager
def set_aside(metrics: Path) -> Iterator[None]:
    """Take the metrics of an earlier training away, to which a new one would append its own.

    They come back if there are no new ones: an option may be wrong, so that nothing is trained.
    """
    earlier = metrics.with_suffix(".earlier")
    if metrics.exists():
        os.replace(metrics, earlier)
    try:
        yield
    finally:
        if metrics.exists():
            earlier.unlink(missing_ok=True)
        elif earlier.exists():
            os.replace(earlier, metrics)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    train, pictures = args.output / "train", args.output / "pictures"
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    root = datasets_root()
    if (root / "shapes").is_dir():
        print(f"== Scenes: those in {root / 'shapes'}")
    else:
        run("Scenes", "datasets/make_shapes.py", "--root", root)

    config = ["--config-file", args.config_file]
    with nullcontext() if args.resume else set_aside(train / "metrics.json"):
        run(
            "Training (seven minutes or so on two cores; the log shows the time left as eta)",
            "train_net.py",
            *config,
            *(["--resume"] if args.resume else []),
            "OUTPUT_DIR",
            train,
            *args.opts,
        )
    run(
        "Pictures",
        "tools/visualize_tokens.py",
        *config,
        "--weights",
        train / "model_final.pth",
        "--num-images",
        args.num_images,
        "--output",
        pictures,
        *args.opts,
    )
    run(
        "Token explorer",
        "tools/explore.py",
        *config,
        "--weights",
        train / "model_final.pth",
        "--num-images",
        2 * args.num_images,
        "--output",
        args.output / "explorer",
        *args.opts,
    )

    series = read_metrics(train)
    results = {name: float(series[key][1][-1]) for name, key in METRICS.items() if key in series}
    (args.output / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    shown = ["total_loss", *(key for key in METRICS.values() if key in series)]
    curves = draw_training_curves({"training": train}, shown)
    Image.fromarray(curves).save(args.output / "curves.png")
    print("\n== Results on the validation scenes")
    for name, value in results.items():
        better = "higher" if higher_is_better(name) else "lower"
        print(f"{name:>6}  {value:.3f}  ({better} is better)")
    print(TOKEN_METRICS)
    print(f"\nLook at {pictures}/*.panel.png, {pictures}/*.tokens.png and {args.output}/curves.png")
    print(f"Open {args.output}/explorer/index.html in a browser")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nStopped. The same command with --resume goes on from the last checkpoint.")
        sys.exit(130)
