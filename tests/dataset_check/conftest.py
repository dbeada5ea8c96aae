"""Records of one image with different kinds of ground truth, and a config."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from checked_records import annotation, polygon, save
from sgr.engine import load_config


@pytest.fixture
def labels():
    """Blocky labels of three classes, some of them ignored."""
    blocks = np.random.default_rng(3).integers(0, 4, (6, 8))
    return np.where(blocks == 3, 255, blocks).astype(np.uint8).repeat(5, 0).repeat(5, 1)


@pytest.fixture
def record(tmp_path, labels):
    image = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
    return {
        "file_name": save(tmp_path / "images" / "a.png", image),
        "sem_seg_file_name": save(tmp_path / "labels" / "a.png", labels),
    }


@pytest.fixture
def instances(record):
    record = {"file_name": record["file_name"]}
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[20:26, 30:38] = 1
    record["annotations"] = [
        annotation(0, polygon(2, 2, 12, 10)),
        annotation(0, polygon(8, 4, 10, 8)),
        annotation(1, mask_util.encode(mask)),
        annotation(1, polygon(20, 0, 30, 4), iscrowd=1),
    ]
    return record


@pytest.fixture
def panoptic(record, tmp_path, labels):
    """Four segments: sky, road, a car and a crowd of cars; what the labels ignore has none."""
    segments = labels.astype(np.int64) + 1
    segments[(labels == 2) & (np.arange(40) >= 20)] = 70000
    segments[labels == 255] = 0
    colours = np.stack([segments // 256**i % 256 for i in range(3)], -1).astype(np.uint8)
    return {
        "file_name": record["file_name"],
        "pan_seg_file_name": save(tmp_path / "pan.png", colours),
        "segments_info": [
            {"id": 1, "category_id": 0},
            {"id": 2, "category_id": 1},
            {"id": 3, "category_id": 2},
            {"id": 70000, "category_id": 2, "iscrowd": 1},
        ],
    }


@pytest.fixture(scope="module")
def cfg():
    return load_config("", ["MODEL.META_ARCHITECTURE", "MaskFormerSegmentor"])
