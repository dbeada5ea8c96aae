"""Precomputed proposals: read as Detectron2 does, without running code of the file."""

import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from sgr.data.proposals import add_proposals
from sgr.engine import Trainer, load_config
from tiny_model import CONFIG


class Evil:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def content(**changes):
    boxes = [np.arange(4.0 * n, dtype=np.float32).reshape(n, 4) for n in (2, 3)]
    scores = [np.array([0.5, 2.0], np.float32), np.array([1.0, 3.0, 2.0], np.float32)]
    mode = BoxMode.XYWH_ABS
    return {"ids": [7, 8], "boxes": boxes, "objectness_logits": scores, "bbox_mode": mode} | changes


def write(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("old", [False, True])
def test_the_same_as_detectron2(tmp_path, protocol, old):
    value = content(ids=[np.int64(7), np.int64(8)])
    if old:
        value["indexes"], value["scores"] = value.pop("ids"), value.pop("objectness_logits")
    file = write(tmp_path / "proposals.pkl", value, protocol)
    records = [{"image_id": 8, "file_name": "b.png"}, {"image_id": "7", "file_name": "a.png"}]
    ours = add_proposals(records, file)
    assert all(len(record) == 2 for record in records)
    for got, expected in zip(ours, load_proposals_into_dataset(records, file), strict=True):
        assert got.keys() == expected.keys()
        for key in got:
            np.testing.assert_array_equal(got[key], expected[key])


@pytest.mark.parametrize(
    "value, message",
    [
        (content(ids=[1, 2]), "no proposals for the image_id 7"),
        (content(ids=[7]), "2 arrays of boxes belong to 1 ids"),
        (content(objectness_logits=[np.zeros(2), np.zeros(4)]), "shape"),
        (content(bbox_mode=77), "77"),
        ([1, 2], "no file of proposals"),
    ],
)
def test_wrong_content(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        add_proposals([{"image_id": 7}], write(tmp_path / "proposals.pkl", value))


@pytest.fixture
def dataset():
    record = {"image_id": 7, "file_name": "a.png", "sem_seg_file_name": "b.png"}
    DatasetCatalog.register("proposed", lambda: [record])
    MetadataCatalog.get("proposed").set(stuff_classes=["a", "b"], ignore_label=255)
    yield "proposed"
    DatasetCatalog.remove("proposed")
    MetadataCatalog.remove("proposed")


def test_code_is_not_run_and_addresses_are_not_fetched(tmp_path, dataset):
    """Neither in training nor in testing, whatever the config says."""
    ran = tmp_path / "ran"
    files = {
        write(tmp_path / "a.pkl", content(ids=[Evil(ran), 8])): r"holds \w+\.mkdir",
        write(tmp_path / "b.pkl", Evil(ran)): r"holds \w+\.mkdir",
        "http://localhost:9/proposals.pkl": "addresses are not fetched",
    }
    for file, message in files.items():
        options = ["MODEL.LOAD_PROPOSALS", "True"]
        for split in ("TRAIN", "TEST"):
            options += [f"DATASETS.{split}", f"({dataset!r},)"]
            options += [f"DATASETS.PROPOSAL_FILES_{split}", f"({file!r},)"]
        cfg = load_config(str(CONFIG), options)
        for build in (
            lambda: Trainer.build_test_loader(cfg, dataset),
            lambda: Trainer.build_train_loader(cfg),
        ):
            with pytest.raises((OSError, ValueError), match=message):
                build()
    assert not ran.exists()


def test_a_file_for_each_dataset():
    cfg = load_config(str(CONFIG), ["MODEL.LOAD_PROPOSALS", "True"])
    with pytest.raises(ValueError, match=r"PROPOSAL_FILES_TRAIN names 0 file\(s\) for 1"):
        Trainer.build_train_loader(cfg)
