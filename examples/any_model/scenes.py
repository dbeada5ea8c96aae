"""Generated scenes in memory, on which the examples beside this file train."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import sgr

sys.path.append(str(Path(__file__).resolve().parents[2] / "datasets"))
from make_shapes import CLASSES, make_scene  # noqa: E402

NUM_CLASSES = len(CLASSES)


class Scenes(Dataset):
    """Items are an image (3, size, size) in [0, 1] and labels (size, size); 255 is ignored."""

    def __init__(self, count, size=64):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def draw(self, index):
        image, labels, things = make_scene(np.random.default_rng(index), self.size)
        return torch.from_numpy(image).permute(2, 0, 1) / 255, torch.from_numpy(labels), things

    def __getitem__(self, index):
        image, labels, _ = self.draw(index)
        return image, labels.long()


def batches(steps, batch_size=2):
    """Batches ``((images, labels), component_maps)``; the components are made in a worker."""
    collate = sgr.ComponentCollate(ignore_label=255)
    return DataLoader(Scenes(steps * batch_size), batch_size, collate_fn=collate, num_workers=1)
