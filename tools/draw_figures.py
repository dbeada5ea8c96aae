#!/usr/bin/env python
"""Draw the paper's figures of tokens, components and predictions, as PNG and SVG.

    python tools/draw_figures.py --figure components --config-file ... --weights ...
    python tools/draw_figures.py --figure regions --name SGR --config-file ... --weights ... \\
        --models GloRe=configs/...@glore.pth "queries=configs/...@maskformer.pth" --images 0 40 80

    components    labels and their connected components (Fig. A)
    tokens        regions with their histograms over classes and instances (Fig. B)
    matching      for each component the regions that are matched to it (Fig. 3)
    regions       the most used regions of each model, on the same images (Fig. 4)
    predictions   what each model predicts (Fig. C to E)

It writes NAME.png and NAME.svg: of components, tokens and matching one of each image. A data set
without instances has components in their place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from sgr.data.faults import list_values
from sgr.data.loading import check_registered, load_dataset
from sgr.dataset_check import spread
from sgr.engine.setup import at_least
from sgr.evaluation.token_metrics import label_histograms
from sgr.explorer import ExplorerModel, add_models_arguments, load_models
from sgr.inference import output_files
from sgr.inspection.image import InspectedImage, Inspector
from sgr.inspection.tokens import Tokens
from sgr.visualization import (
    also_as_svg,
    class_colors,
    color_labels,
    draw_grid,
    draw_panel,
    draw_token_histograms,
    number_names,
    overlay_heat,
    upsample_regions,
)

# The name of a figure, and a function that draws it.
Drawing = tuple[str, Callable[[], np.ndarray]]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the paper's figures, as PNG and SVG.")
    parser.add_argument("--figure", choices=list(FIGURES), required=True)
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument(
        "--images",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="numbers of images in the dataset, from 0 (default: three, spread over it)",
    )
    parser.add_argument(
        "--num-regions",
        type=at_least(1),
        default=3,
        metavar="N",
        help="regions of a model (default: 3)",
    )
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR")
    add_models_arguments(parser)
    return parser.parse_args(arguments)


class Images:
    """What the models do in some images of a dataset.

    Attributes:
        names: stems of the images' files, after their folders where two stems are equal.
        inspected: for each image name of a model -> what it does there.
    """

    def __init__(self, models: list[ExplorerModel], dataset: str, numbers: list[int]):
        check_registered(dataset, "--dataset, or DATASETS.TEST, has")
        records = load_dataset(dataset)
        numbers = numbers or list(spread(3, len(records)))
        wrong = [number for number in numbers if not 0 <= number < len(records)]
        if wrong:
            raise ValueError(
                f"{dataset} has images 0 to {len(records) - 1}, not {list_values(wrong)}"
            )
        metadata = MetadataCatalog.get(dataset)
        inspectors = {one.name: Inspector(one.model, one.cfg, metadata) for one in models}
        files = [Path(records[number]["file_name"]) for number in numbers]
        unique = output_files(files, Path(), (), ".png")
        self.names = ["_".join(file.with_suffix("").parts) for file in unique]
        self.inspected = [
            {name: inspect(records[number]) for name, inspect in inspectors.items()}
            for number in numbers
        ]
        self.class_names = next(iter(inspectors.values())).class_names
        self.colors = class_colors(metadata, len(self.class_names))

    def firsts(self) -> Iterator[tuple[str, InspectedImage]]:
        """The stem of each image, and what the first model does there."""
        for name, inspected in zip(self.names, self.inspected):
            yield name, next(iter(inspected.values()))


def draw_components(images: Images, num_regions: int) -> Iterator[Drawing]:
    for name, one in images.firsts():
        yield (
            f"components_{name}",
            lambda: draw_panel(
                one.image,
                class_names=images.class_names,
                class_colors=images.colors,
                ground_truth=one.labels,
                components=one.components,
            ),
        )


def draw_tokens(images: Images, num_regions: int) -> Iterator[Drawing]:
    for name, one in images.firsts():
        tokens = _tokens_of(one)
        shown = tokens.most_used(num_regions)
        options = {}
        if tokens.classes is not None:
            present = tokens.classes.labels
            options["class_histograms"] = tokens.classes.values[shown]
            options["class_names"] = [images.class_names[label] for label in present]
            options["class_colors"] = images.colors[present]
        if tokens.instances is not None and len(tokens.instances.labels):
            options["instance_map"] = tokens.instances.bins
            options["instance_histograms"] = tokens.instances.values[shown]
            options["instance_names"] = number_names(one.instance_names or [])
        elif one.components is not None:
            indices, classes = one.components
            values, present, bins = label_histograms(
                torch.from_numpy(tokens.probabilities[shown]),
                torch.from_numpy(indices.astype(np.int64)),
                tokens.stride,
                input_size=one.input_size,
            )
            names = number_names([images.class_names[label] for label in classes])
            options["instance_map"] = bins.numpy()
            options["instance_histograms"] = values.numpy()
            options["instance_names"] = [names[index] for index in present]
            options["instance_title"] = "components"
        titles = [f"token {token}, peak {tokens.peak[token]:.2f}" for token in shown]
        heat = _heat(one, tokens, shown)
        yield f"tokens_{name}", lambda: draw_token_histograms(one.image, heat, titles, **options)


def draw_matching(images: Images, num_regions: int) -> Iterator[Drawing]:
    for name, one in images.firsts():
        tokens = _tokens_of(one)
        if one.components is None or tokens.components is None:
            raise ValueError(f"{name} has no labels, so no components to match")
        classes = one.components.classes
        components = number_names([images.class_names[label] for label in classes])
        unions, titles = [], []
        for index, component in enumerate(components):
            matched = np.flatnonzero(tokens.components == index)
            unions.append(1 - np.prod(1 - tokens.probabilities[matched], axis=0))
            listed = ", ".join(map(str, matched[:6])) + (", ..." if len(matched) > 6 else "")
            regions = "region" if len(matched) == 1 else f"{len(matched)} regions"
            titles.append(f"{component}\n{regions}: {listed}")
        # An image without components has none.
        cells = np.reshape(unions, (-1, *tokens.probabilities.shape[1:]))
        heat = upsample_regions(cells, tokens.stride, one.input_size, one.image.shape[:2])
        yield (
            f"matching_{name}",
            lambda: draw_panel(
                one.image,
                class_names=images.class_names,
                class_colors=images.colors,
                ground_truth=one.labels,
                components=one.components,
                regions=heat,
                region_names=titles,
            ),
        )


def draw_regions(images: Images, num_regions: int) -> Iterator[Drawing]:
    rows = []
    for inspected in images.inspected:
        for model, one in inspected.items():
            tokens = _tokens_of(one)
            shown = tokens.most_used(num_regions)
            row = [(model, one.image)]
            for token, heat in zip(shown, _heat(one, tokens, shown)):
                title = f"{token}"
                if tokens.classes is not None and len(tokens.classes.labels):
                    share = tokens.classes.values[token]
                    label = tokens.classes.labels[share.argmax()]
                    title += f": {images.class_names[label]} {100 * share.max():.0f} %"
                row.append((title, overlay_heat(one.image, heat)))
            rows.append(row)
    yield "regions", lambda: draw_grid(rows)


def draw_predictions(images: Images, num_regions: int) -> Iterator[Drawing]:
    rows, labels = [], set()
    for place, inspected in enumerate(images.inspected):
        first = next(iter(inspected.values()))
        maps = {} if first.labels is None else {"ground truth": first.labels}
        maps |= {
            model: one.prediction for model, one in inspected.items() if one.prediction is not None
        }
        row = [("image", first.image)]
        row += [(title, color_labels(one, images.colors)) for title, one in maps.items()]
        labels |= set().union(*(np.unique(one).tolist() for one in maps.values()))
        rows.append([(title if place == 0 else "", picture) for title, picture in row])
    yield (
        "predictions",
        lambda: draw_grid(
            rows, labels=labels, class_names=images.class_names, class_colors=images.colors
        ),
    )


FIGURES: dict[str, Callable[[Images, int], Iterator[Drawing]]] = {
    "components": draw_components,
    "tokens": draw_tokens,
    "matching": draw_matching,
    "regions": draw_regions,
    "predictions": draw_predictions,
}


def _tokens_of(one: InspectedImage) -> Tokens:
    if one.tokens is None:
        raise ValueError("a model has no tokens; this figure shows them")
    return one.tokens


def _heat(one: InspectedImage, tokens: Tokens, shown: np.ndarray) -> np.ndarray:
    return upsample_regions(
        tokens.probabilities[shown], tokens.stride, one.input_size, one.image.shape[:2]
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    setup_logger(name="sgr")
    models = load_models(args)
    dataset = args.dataset or next(iter(models[0].cfg.DATASETS.TEST), None)
    if dataset is None:
        raise ValueError("DATASETS.TEST is empty; name a dataset with --dataset")
    images = Images(models, dataset, args.images)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES[args.figure](images, args.num_regions):
        with also_as_svg(args.output / f"{name}.svg"):
            Image.fromarray(draw()).save(args.output / f"{name}.png")
        print(f"{args.output / name}.png, .svg")


if __name__ == "__main__":
    main()
