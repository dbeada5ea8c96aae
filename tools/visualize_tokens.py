#!/usr/bin/env python
"""Draw the concept regions of a model, and the classes and instances below them.

It writes two pictures for each image. NAME.panel.png has the image, its ground truth, components,
prediction and the most used concept regions. NAME.tokens.png has the histograms of classes and
instances of the first few of these regions, if the model has any. If two images have the same NAME,
their pictures lie in the images' folders below OUTPUT.

    python tools/visualize_tokens.py --config-file configs/... --weights model_final.pth \
        --dataset ade20k_sem_seg_val --num-images 8 --output pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from sgr.data.loading import check_registered, load_dataset
from sgr.dataset_check import spread
from sgr.engine.setup import at_least
from sgr.explorer import ExplorerModel
from sgr.inference import output_files
from sgr.inspection.image import Inspector
from sgr.inspection.pictures import draw_inspected, draw_inspected_tokens
from sgr.load import add_model_arguments, load_model
from sgr.visualization import class_colors


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a model's concept regions and the histograms of its tokens."
    )
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument(
        "--num-images", type=at_least(1), default=8, help="images, spread over the dataset"
    )
    parser.add_argument(
        "--num-regions", type=at_least(1), default=8, help="concept regions in a panel"
    )
    parser.add_argument("--num-tokens", type=at_least(1), default=3, help="tokens with histograms")
    parser.add_argument("--output", type=Path, default=Path("pictures"), metavar="DIR")
    add_model_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    setup_logger(name="sgr")
    loaded = ExplorerModel(  # with its tokens, if it has some
        "model",
        *load_model(
            [args.config_file, *args.mixins],
            args.weights,
            *args.opts,
            allow_pickle=args.allow_pickle,
            allow_unsafe_yaml=args.allow_unsafe_yaml,
        ),
    )
    model, cfg = loaded.model, loaded.cfg
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise ValueError("DATASETS.TEST is empty; name a dataset with --dataset")
    check_registered(dataset, "--dataset, or DATASETS.TEST, has")
    records = load_dataset(dataset)
    metadata = MetadataCatalog.get(dataset)
    inspect = Inspector(model, cfg, metadata)
    colors = class_colors(metadata, len(inspect.class_names))
    args.output.mkdir(parents=True, exist_ok=True)

    chosen = [records[index] for index in spread(args.num_images, len(records))]
    # Images of one name in different folders do not overwrite each other's pictures.
    files = output_files([Path(each["file_name"]) for each in chosen], args.output, (), ".png")
    for record, file in zip(chosen, files):
        drawn = inspect(record), inspect.class_names, colors
        panel = draw_inspected(*drawn, num_regions=args.num_regions)
        tokens = draw_inspected_tokens(*drawn, num_tokens=args.num_tokens)
        stem = file.with_suffix("")
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(panel).save(f"{stem}.panel.png")
        if tokens is not None:
            Image.fromarray(tokens).save(f"{stem}.tokens.png")
        print(f"{stem}.panel.png")


if __name__ == "__main__":
    main()
