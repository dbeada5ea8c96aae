"""Evaluate one process's share of small datasets; run by test_token_evaluator.py.

python evaluate_share.py RANK WORLD_SIZE FOLDER NUM_IMAGES...: writes, for each number of images,
FOLDER/NUM_IMAGES-RANK.json.
"""

import json
import sys
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


if __name__ == "__main__":
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    for num_images in map(int, sys.argv[4:]):
        result = evaluate_share(rank, world_size, folder, num_images)
        (folder / f"{num_images}-{rank}.json").write_text(json.dumps(result))
