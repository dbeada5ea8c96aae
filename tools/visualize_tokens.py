#!/usr/bin/env python
"""Draw the concept regions of a model, and the classes and instances below them.

It writes two pictures for each image. NAME.panel.png has the image, its ground truth, components,
prediction and the most used concept regions. NAME.tokens.png has the histograms of classes and
instances of the first few of these regions.

    python tools/visualize_tokens.py --config-file configs/... --weights model_final.pth \
        --dataset ade20k_sem_seg_val --num-images 8 --output pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from sgr.dataset_check import spread
from sgr.inspection.image import InspectedImage, Inspector
from sgr.load import add_model_arguments, load_model
from sgr.visualization import (
    class_colors,
    draw_panel,
    draw_token_histograms,
    number_names,
    upsample_regions,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a model's concept regions and the histograms of its tokens."
    )
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--num-images", type=int, default=8, help="images, spread over the dataset")
    parser.add_argument("--num-regions", type=int, default=8, help="concept regions in a panel")
    parser.add_argument("--num-tokens", type=int, default=3, help="tokens with histograms")
    parser.add_argument("--output", type=Path, default=Path("pictures"), metavar="DIR")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("num_images", "num_regions", "num_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    setup_logger(name="sgr")
    model, cfg = load_model(
        [args.config_file, *args.mixins],
        args.weights,
        *args.opts,
        *("TEST.TOKENS.ENABLED", "True"),
        allow_pickle=args.allow_pickle,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise ValueError("DATASETS.TEST is empty; name a dataset with --dataset")
    records = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    inspect = Inspector(model, cfg, metadata)
    colors = class_colors(metadata, len(inspect.class_names))
    args.output.mkdir(parents=True, exist_ok=True)

    for index in spread(args.num_images, len(records)):
        record = records[index]
        panel, tokens = draw(
            inspect(record), inspect.class_names, colors, args.num_regions, args.num_tokens
        )
        stem = args.output / Path(record["file_name"]).stem
        Image.fromarray(panel).save(f"{stem}.panel.png")
        if tokens is not None:
            Image.fromarray(tokens).save(f"{stem}.tokens.png")
        print(f"{stem}.panel.png")


def draw(
    inspected: InspectedImage,
    class_names: list[str],
    colors: np.ndarray,
    num_regions: int,
    num_tokens: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw the panel of an image, and the histograms of its tokens if there is ground truth."""
    image, tokens = inspected.image, inspected.tokens
    shown = tokens.most_used(max(num_regions, num_tokens))
    with_histograms = shown[:num_tokens]
    heat = upsample_regions(
        tokens.probabilities[shown], tokens.stride, inspected.input_size, image.shape[:2]
    )
    titles = [f"concept {token}, peak {tokens.peak[token]:.2f}" for token in shown]
    in_tokens = {}
    if tokens.classes is not None and len(tokens.classes.labels):
        present = tokens.classes.labels
        in_tokens["class_histograms"] = tokens.classes.values[with_histograms]
        in_tokens["class_names"] = [class_names[label] for label in present]
        in_tokens["class_colors"] = colors[present]
        titles = [
            f"{title}\n{class_names[present[row.argmax()]]} {100 * row.max():.0f} %"
            for title, row in zip(titles, tokens.classes.values[shown])
        ]
    if tokens.instances is not None and len(tokens.instances.labels):
        in_tokens["instance_map"] = tokens.instances.bins
        in_tokens["instance_histograms"] = tokens.instances.values[with_histograms]
        in_tokens["instance_names"] = number_names(inspected.instance_names)

    panel = draw_panel(
        image,
        class_names=class_names,
        class_colors=colors,
        ground_truth=inspected.labels,
        components=inspected.components,
        prediction=inspected.prediction,
        regions=heat[:num_regions],
        region_names=titles[:num_regions],
    )
    if not in_tokens:
        return panel, None
    first = slice(num_tokens)
    return panel, draw_token_histograms(image, heat[first], titles[first], **in_tokens)


if __name__ == "__main__":
    main()
