"""Evaluating one process's share of small datasets."""

from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import TokenSemanticsEvaluator
from sgr.modeling.reasoning.concept_regions import ConceptRegions


def evaluate_share(rank: int, world_size: int, folder: Path, num_images: int) -> dict | None:
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


def evaluate_shares(rank: int, folder: Path, numbers: list[int]) -> list[dict | None]:
    """For two processes: results for datasets of each number of images."""
    return [evaluate_share(rank, 2, folder, number) for number in numbers]
