"""Evaluating one process's share of small datasets."""

from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import (
    CityscapesMeanIoUEvaluator,
    PanopticQualityEvaluator,
    TokenSemanticsEvaluator,
)
from sgr.modeling.reasoning.concept_regions import ConceptRegions


def evaluate_token_share(rank: int, world_size: int, folder: Path, num_images: int) -> dict | None:
    records, outputs = [], []
    for index in range(num_images):
        rng = np.random.default_rng(index)
        label_file = folder / f"labels-{rank}-{world_size}-{index}.png"
        Image.fromarray(rng.integers(0, 4, (20, 30)).astype(np.uint8)).save(label_file)
        boxes = [[0, 0, 12, 9], [6, 4, 20, 12]] if index % 2 else []
        polygons = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
        records.append(
            {
                "file_name": f"{index}.jpg",
                "height": 20,
                "width": 30,
                "sem_seg_file_name": str(label_file),
                "annotations": [{"segmentation": [polygon]} for polygon in polygons],
            }
        )
        logits = torch.from_numpy(rng.normal(-1, 2, (1, 6, 3, 4)))
        outputs.append({"concept_regions": ConceptRegions(logits, stride=8)})
        if num_images > 1:
            outputs[-1]["query_regions"] = ConceptRegions(logits[:, :4].flip(1), stride=8)
    name = f"share_of_{num_images}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(ignore_label=3)
    try:
        evaluator = TokenSemanticsEvaluator(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for record, output in list(zip(records, outputs))[rank::world_size]:
        image = torch.zeros(3, 20, 30)
        evaluator.process([{"file_name": record["file_name"], "image": image}], [output])
    return evaluator.evaluate()


def evaluate_panoptic_share(
    rank: int, world_size: int, folder: Path, num_images: int
) -> dict | None:
    records, outputs = [], []
    for index in range(num_images):
        rng = np.random.default_rng(index)
        ids = rng.integers(0, 5, (4, 5)).astype(np.uint8)
        file = folder / f"segments-{rank}-{world_size}-{index}.png"
        Image.fromarray(ids).save(file)
        segments = [{"id": id, "category_id": id % 3} for id in range(1, 5)]
        records.append(
            {
                "file_name": f"{index}.jpg",
                "pan_seg_file_name": str(file),
                "segments_info": segments,
            }
        )
        predicted = np.where(rng.random(ids.shape) < 0.8, ids, 0).astype(np.int32)
        outputs.append({"panoptic_seg": (torch.from_numpy(predicted), segments)})
    name = f"panoptic_share_of_{num_images}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b", "c"], thing_dataset_id_to_contiguous_id={5: 1}
    )
    try:
        evaluator = PanopticQualityEvaluator(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for record, output in list(zip(records, outputs))[rank::world_size]:
        evaluator.process([{"file_name": record["file_name"]}], [output])
    return evaluator.evaluate()


def evaluate_semantic_share(
    rank: int, world_size: int, folder: Path, num_images: int
) -> dict | None:
    """Of an evaluator that writes predictions too, into a folder for each number of processes."""
    records, predictions = [], []
    for index in range(num_images):
        rng = np.random.default_rng(index)
        labels = rng.choice([*range(0, 19, 2), 255], (4, 5)).astype(np.uint8)
        stem = folder / f"city-{rank}-{world_size}-{index}_gtFine"
        Image.fromarray(labels).save(f"{stem}_labelTrainIds.png")
        instances = np.where(labels == 12, 25001, np.where(labels == 14, 27000, 7))
        Image.fromarray(instances.astype(np.uint16)).save(f"{stem}_instanceIds.png")
        label_file = f"{stem}_labelTrainIds.png"
        records.append({"file_name": f"{index}.png", "sem_seg_file_name": label_file})
        guess = rng.integers(0, 19, labels.shape)
        right = (labels < 19) & (rng.random(labels.shape) < 0.5)
        predictions.append(np.where(right, labels, guess))
    name = f"semantic_share_of_{num_images}"
    DatasetCatalog.register(name, lambda: records)
    classes = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
    MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
    try:
        output = str(folder / f"{name}-{world_size}")
        evaluator = CityscapesMeanIoUEvaluator(name, output_dir=output)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for record, labels in list(zip(records, predictions))[rank::world_size]:
        output = {"sem_seg": torch.from_numpy(labels)}
        evaluator.process([{"file_name": record["file_name"]}], [output])
    return evaluator.evaluate()


def evaluate_shares(
    rank: int, folder: Path, numbers: list[int]
) -> list[tuple[dict | None, dict | None, dict | None]]:
    """For two processes: tokens, panoptic quality and mIoU on datasets of each number of images."""
    return [
        (
            evaluate_token_share(rank, 2, folder, number),
            evaluate_panoptic_share(rank, 2, folder, number),
            evaluate_semantic_share(rank, 2, folder, number),
        )
        for number in numbers
    ]
