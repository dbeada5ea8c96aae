#!/usr/bin/env python
"""Show what a model's tokens look at.

Writes two pictures per image: NAME.panel.png with the image, its ground truth, components and
prediction and the most used concept regions, and NAME.tokens.png with the histograms of classes
and instances under the first few of them.

    python tools/visualize_tokens.py --config-file configs/... --weights model_final.pth \
        --dataset ade20k_sem_seg_val --num-images 8 --output pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from PIL import Image

import sgr  # noqa: F401 (registers)
from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.data.components import connected_components
from sgr.data.truth.records import (
    has_classes,
    has_instances,
    read_class_map,
    read_instance_map,
)
from sgr.dataset_check import spread
from sgr.engine import setup_config
from sgr.evaluation import label_histograms
from sgr.modeling.outputs import predicted_labels, regions_of
from sgr.visualization import (
    class_colors,
    draw_panel,
    draw_token_histograms,
    most_used_regions,
    number_names,
    upsample_regions,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a model's concept regions and the histograms of its tokens."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--allow-pickle", action="store_true", help="as in train_net.py")
    parser.add_argument("--allow-unsafe-yaml", action="store_true", help="as in train_net.py")
    parser.add_argument("--weights", metavar="FILE", help="default: the config's MODEL.WEIGHTS")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--num-images", type=int, default=8, help="spread over the dataset")
    parser.add_argument("--num-regions", type=int, default=8, help="regions in a panel")
    parser.add_argument("--num-tokens", type=int, default=3, help="tokens with histograms")
    parser.add_argument("--output", type=Path, default=Path("pictures"), metavar="DIR")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config"
    )
    args = parser.parse_args(arguments)
    for name in ("num_images", "num_regions", "num_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def load_model(args: argparse.Namespace) -> tuple[CfgNode, torch.nn.Module]:
    """The config and the model with its weights, in evaluation mode."""
    args.opts += ["TEST.TOKENS.ENABLED", "True", "OUTPUT_DIR", str(args.output)]
    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    cfg = setup_config(args)
    model = build_model(cfg)
    SafeCheckpointer(model, allow_pickle=args.allow_pickle).load(cfg.MODEL.WEIGHTS)
    return cfg, model.eval()


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    cfg, model = load_model(args)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise ValueError("DATASETS.TEST is empty; name a dataset with --dataset")
    records = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    mapper = DatasetMapper(cfg, is_train=False)
    args.output.mkdir(parents=True, exist_ok=True)

    for index in spread(args.num_images, len(records)):
        record = records[index]
        input_ = mapper(record)
        with torch.no_grad():
            output = model([input_])[0]
        panel, tokens = draw(cfg, metadata, record, input_, output, args)
        stem = args.output / Path(record["file_name"]).stem
        Image.fromarray(panel).save(f"{stem}.panel.png")
        if tokens is not None:
            Image.fromarray(tokens).save(f"{stem}.tokens.png")
        print(f"{stem}.panel.png")


def draw(
    cfg: CfgNode, metadata, record: dict, input_: dict, output: dict, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray | None]:
    """The panel of one image, and the histograms where there is ground truth."""
    image = read_image(record["file_name"], format="RGB")
    size, input_size = image.shape[:2], tuple(input_["image"].shape[-2:])
    regions = regions_of(output)
    probabilities = regions.probabilities[0].cpu()
    shown = most_used_regions(probabilities.numpy(), max(args.num_regions, args.num_tokens))
    heat = upsample_regions(probabilities.numpy()[shown], regions.stride, input_size, size)

    def histograms(labels: np.ndarray) -> list[np.ndarray]:
        """The shown tokens' histograms, the bins' labels, and the map of bins."""
        results = label_histograms(
            probabilities[shown.tolist()],
            torch.from_numpy(labels),
            regions.stride,
            input_size=input_size,
        )
        return [result.numpy() for result in results]

    names = list(metadata.get("stuff_classes") or metadata.get("thing_classes") or [])
    colors = class_colors(metadata, len(names))
    titles = [f"concept {k}, peak {probabilities[k].max():.2f}" for k in shown]
    in_panel, in_tokens = {}, {}
    if names and has_classes(record):
        labels = read_class_map(
            record, num_classes=len(names), ignore_label=metadata.get("ignore_label", 255)
        )
        in_panel["ground_truth"] = labels
        in_panel["components"] = connected_components(
            labels,
            ignore_label=-1,
            min_area_ratio=cfg.INPUT.COMPONENTS.MIN_AREA_RATIO,
            kernel_size=cfg.INPUT.COMPONENTS.KERNEL_SIZE,
            max_components=cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE,
        )
        values, present, _ = histograms(labels)
        if len(present):
            in_tokens["class_histograms"] = values[: args.num_tokens]
            in_tokens["class_names"] = [names[label] for label in present]
            in_tokens["class_colors"] = colors[present]
            titles = [
                f"{title}\n{names[present[row.argmax()]]} {100 * row.max():.0f} %"
                for title, row in zip(titles, values)
            ]
    if "sem_seg" in output:
        in_panel["prediction"] = predicted_labels(output["sem_seg"]).cpu().numpy()
    if has_instances(record):
        thing_ids = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        values, present, bins = histograms(read_instance_map(record, size, thing_ids))
        if len(present):
            # Those of annotations count over the things, those of segments over all classes.
            key, categories = "segments_info", names
            if "annotations" in record:
                key, categories = "annotations", metadata.get("thing_classes") or names
            in_tokens["instance_map"] = bins
            in_tokens["instance_histograms"] = values[: args.num_tokens]
            in_tokens["instance_names"] = number_names(
                [categories[record[key][index]["category_id"]] for index in present]
            )

    panel = draw_panel(
        image,
        class_names=names,
        class_colors=colors,
        regions=heat[: args.num_regions],
        region_names=titles[: args.num_regions],
        **in_panel,
    )
    if not in_tokens:
        return panel, None
    first = slice(args.num_tokens)
    return panel, draw_token_histograms(image, heat[first], titles[first], **in_tokens)


if __name__ == "__main__":
    main()
