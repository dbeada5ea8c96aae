"""Panoptic and instance segmentation end to end, on a tiny model and tiny scenes."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from PIL import Image

from sgr.data.datasets.shapes import SHAPES_CLASSES, SHAPES_STUFF, load_shapes_sem_seg
from sgr.data.truth.records import read_instance_map
from sgr.data.truth.segments import read_segment_map
from sgr.engine import Trainer
from sgr.modeling.reasoning.concept_regions import ConceptRegions
from tiny_model import tiny_config


@pytest.fixture
def panoptic_shapes(tiny_shapes, tmp_path):
    """Shapes as a panoptic dataset with label maps and the annotations of things beside them."""
    things = range(len(SHAPES_STUFF), len(SHAPES_CLASSES))
    names = []
    for split in ("train", "val"):
        records = load_shapes_sem_seg(split)
        for index, record in enumerate(records):
            labels = np.asarray(Image.open(record["sem_seg_file_name"])).astype(int)
            annotations = record.pop("annotations")
            instances = read_instance_map({"annotations": annotations}, labels.shape)
            # Stuff has the id of its class and 1, things come after all of it.
            ids = np.where(labels < len(SHAPES_STUFF), labels + 1, 0)
            ids = np.where(instances >= 0, 1000 + instances, ids)
            segments = []
            for id in np.unique(ids[ids > 0]).tolist():
                category = id - 1
                if id >= 1000:
                    category = things[annotations[id - 1000]["category_id"]]
                segments.append({"id": id, "category_id": category, "iscrowd": 0})
            picture = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
            file = tmp_path / f"{split}-{index}.png"
            Image.fromarray(picture).save(file)
            record.update(pan_seg_file_name=str(file), segments_info=segments)
        name = f"panoptic_shapes_{split}_{tmp_path.name}"
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(
            stuff_classes=SHAPES_CLASSES,
            thing_classes=SHAPES_CLASSES,
            thing_dataset_id_to_contiguous_id={id: c for id, c in enumerate(things, start=1)},
            ignore_label=255,
            evaluator_type="coco_panoptic_seg",
            json_file=str(tiny_shapes / "shapes" / "annotations" / f"instances_{split}.json"),
        )
        names.append(name)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def switched_on(*results):
    keys = ("SEMANTIC", "PANOPTIC", "INSTANCE")
    return {f"MODEL__MASK_FORMER__TEST__{key}_ON": key in results for key in keys}


def test_panoptic(panoptic_shapes, tmp_path, monkeypatch):
    loaded = Counter()
    get = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: loaded.update([name]) or get(name))
    cfg = tiny_config(
        tmp_path / "out",
        DATASETS__TRAIN=f"('{panoptic_shapes[0]}',)",
        DATASETS__TEST=f"('{panoptic_shapes[1]}',)",
        INPUT__DATASET_MAPPER_NAME="mask_former_panoptic_concept",
        SOLVER__MAX_ITER=2,
        TEST__EVAL_PERIOD=2,
        **switched_on("SEMANTIC", "PANOPTIC", "INSTANCE"),
    )
    trainer = train(cfg)
    assert loaded == dict.fromkeys(panoptic_shapes, 1)
    losses = trainer.storage.latest()
    assert {"loss_mask", "loss_concept_focal"} <= losses.keys()
    results = trainer._last_eval_results
    assert list(results) == ["sem_seg", "panoptic_seg", "bbox", "segm", "tokens", "queries"]
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100
    assert results["tokens"]["images_C"] == results["queries"]["images_C"] == 5
    assert results["tokens"]["images_I"] == results["queries"]["images_I"] == 5
    inference = tmp_path / "out" / "inference"
    for file in ("panoptic.json", "tokens.json", "queries.json"):
        assert json.loads((inference / file).read_text())


class Perfect(torch.nn.Module):
    """Puts out the ground truth of the records of a panoptic dataset."""

    def __init__(self, records):
        super().__init__()
        self.records = {record["file_name"]: record for record in records}

    def forward(self, inputs):
        return [self.of(self.records[each["file_name"]]) for each in inputs]

    def of(self, record):
        places = torch.from_numpy(read_segment_map(record))
        categories = [segment["category_id"] for segment in record["segments_info"]]
        # Numbered anew, as a model would.
        segments = [{"id": n, "category_id": each} for n, each in enumerate(categories, start=1)]
        masks = torch.stack([places == index for index in range(len(segments))])
        labels = torch.tensor([*categories, 0])[places]
        things = torch.tensor([each >= len(SHAPES_STUFF) for each in categories])
        instances = Instances(tuple(places.shape))
        instances.pred_masks = masks[things]
        instances.pred_boxes = BitMasks(masks[things]).get_bounding_boxes()
        instances.pred_classes = torch.tensor(categories)[things]
        instances.scores = torch.ones(int(things.sum()))
        regions = torch.stack([labels == each for each in sorted(set(categories))])
        return {
            "sem_seg": labels.int(),
            "panoptic_seg": ((places + 1).int(), segments),
            "instances": instances,
            "concept_regions": ConceptRegions(regions[None].double().logit(), stride=1),
        }


@pytest.mark.parametrize("label_maps", [True, False])
def test_a_perfect_panoptic_prediction(panoptic_shapes, tmp_path, label_maps):
    """Of all evaluators of a panoptic dataset, from the loader to the results."""
    name = panoptic_shapes[1]
    records = DatasetCatalog.get(name)
    for record in records if not label_maps else ():
        del record["sem_seg_file_name"]
    cfg = tiny_config(
        tmp_path,
        DATASETS__TEST=f"('{name}',)",
        **switched_on("SEMANTIC", "PANOPTIC", "INSTANCE"),
    )
    results = Trainer.test(cfg, Perfect(records))
    tasks = ["sem_seg", "panoptic_seg", "bbox", "segm", "tokens"]
    assert list(results) == tasks
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["pACC"] == pytest.approx(100)
    panoptic = results["panoptic_seg"]
    groups = [name + suffix for name in ("PQ", "SQ", "RQ") for suffix in ("", "_th", "_st")]
    assert all(panoptic[each] == pytest.approx(100) for each in groups)
    present = {segment["category_id"] for record in records for segment in record["segments_info"]}
    of_classes = {each for each in panoptic if each.startswith("PQ-")}
    assert of_classes == {f"PQ-{SHAPES_CLASSES[category]}" for category in present}
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] > 90  # boxes of corners in the file, of pixels here
    assert results["tokens"]["S_C"] == pytest.approx(0, abs=1e-6)
    assert results["tokens"]["images_C"] == results["tokens"]["images_I"] == len(records)


@pytest.mark.parametrize("name", ["mask_former_instance_concept", "coco_instance_lsj_concept"])
def test_instances(tiny_shapes, tmp_path, name):
    cfg = tiny_config(
        tmp_path,
        DATASETS__TRAIN="('shapes_instance_train',)",
        DATASETS__TEST="('shapes_instance_val',)",
        INPUT__DATASET_MAPPER_NAME=name,
        INPUT__CROP__ENABLED=False,
        INPUT__IMAGE_SIZE=96,
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=len(SHAPES_CLASSES) - len(SHAPES_STUFF),
        SOLVER__MAX_ITER=1,
        TEST__EVAL_PERIOD=1,
        **switched_on("INSTANCE"),
    )
    results = train(cfg)._last_eval_results
    assert list(results) == ["bbox", "segm", "tokens", "queries"]
    assert {"AP", "AP50"} <= results["segm"].keys()


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_only_instance_data_are_filtered(panoptic_shapes, tmp_path, task):
    """Images whose things are all crowds, or which have none."""
    records = DatasetCatalog.get(panoptic_shapes[0])
    for record in records[:3]:
        record["annotations"] = []
    for record in records[3:]:
        square = [0, 0, 9, 0, 9, 9]
        record["annotations"] = [{"category_id": 0, "iscrowd": 0, "segmentation": [square]}]
    cfg = tiny_config(
        tmp_path,
        DATASETS__TRAIN=f"('{panoptic_shapes[0]}',)",
        INPUT__CROP__SINGLE_CATEGORY_MAX_AREA=1.0,
        INPUT__DATASET_MAPPER_NAME=f"mask_former_{task}_concept",
    )
    kept = Trainer.build_train_loader(cfg).num_images
    assert kept == len(records) - (3 if task == "instance" else 0)
