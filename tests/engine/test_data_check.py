"""What can be known of the data is said before the first iteration, or before an evaluation."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.data.datasets.folders import register_sem_seg
from sgr.engine import Trainer, evaluate
from sgr.engine.data_check import check_measured
from tiny_model import tiny_config

NAMES = ["road", "car", "sky"]


@pytest.fixture
def register(tmp_path):
    """register(name, classes, labels=..., **options) makes a dataset of three images."""
    made = []

    def make(name, classes=NAMES, labels=(0, 1, 2), **options):
        folder = tmp_path / name
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((40, 48, 3), 80 * number, np.uint8)).save(
                folder / "images" / f"{number}.jpg"
            )
            values = np.resize(np.array(labels, np.uint8), (40, 48))
            Image.fromarray(values).save(folder / "labels" / f"{number}.png")
        name = f"{name}_{tmp_path.name}"
        register_sem_seg(name, folder / "images", folder / "labels", classes=classes, **options)
        made.append(name)
        return name

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(folder, train, test, **more):
    options = {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 3, "SOLVER__MAX_ITER": 1, **more}
    return tiny_config(
        folder / "out", DATASETS__TRAIN=f"('{train}',)", DATASETS__TEST=f"('{test}',)", **options
    )


@pytest.mark.parametrize(
    "names, message",
    [
        (["road", "sky", "car"], r"class 1 is 'car' in train_.*, but 'sky' in val_"),
        (["road", "car", "tree"], r"class 2 is 'sky' in train_.*, but 'tree' in val_"),
        (["Road", "car ", "SKY"], None),
        (3, None),  # unnamed
    ],
)
def test_names_of_train_and_test(register, tmp_path, names, message):
    cfg = config(tmp_path, register("train"), register("val", names))
    if message is None:
        Trainer(cfg)
        return
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)
    cfg.MODEL.WEIGHTS = "none.pth"
    with pytest.raises(ValueError, match=message):
        evaluate(cfg)


def test_names_among_the_training_sets(register, tmp_path):
    one, other = register("one"), register("other", NAMES[::-1])
    cfg = config(tmp_path, one, one)
    cfg.DATASETS.TRAIN = (one, other)
    with pytest.raises(ValueError, match=r"class 0 is 'road' in one_.*, but 'sky' in other_"):
        Trainer(cfg)


def test_names_are_in_the_checkpoint(register, tmp_path):
    train, other = register("train"), register("other", NAMES[::-1])
    trainer = Trainer(config(tmp_path, train, train))
    trainer.train()
    weights = tmp_path / "out" / "model_final.pth"
    saved = torch.load(weights, weights_only=True)
    assert saved["trainer"]["classes"]["stuff_classes"] == NAMES
    cfg = config(tmp_path, other, other, MODEL__WEIGHTS=weights, TEST__TOKENS__ENABLED=False)
    message = r"class 0 is 'road' in the checkpoint, but 'sky' in other_"
    with pytest.raises(ValueError, match=message):
        evaluate(cfg)
    cfg.SOLVER.MAX_ITER = 2
    resumed = Trainer(cfg)
    with pytest.raises(ValueError, match=message):
        resumed.resume_or_load(resume=True)


@pytest.mark.parametrize("number", [2, 20])
def test_number_of_classes(register, tmp_path, number):
    train, unnamed = register("train"), register("unnamed", None)
    cfg = config(tmp_path, train, train)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
    message = f"NUM_CLASSES is {number}, but the dataset train_.* has 3 classes"
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)
    with pytest.raises(ValueError, match=message):
        evaluate(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (unnamed,)  # the number is known once it is loaded
    with pytest.raises(ValueError, match="NUM_CLASSES is .* the dataset unnamed_.* has 3 classes"):
        Trainer(cfg)


def test_a_sampler_that_needs_instances(register, tmp_path):
    name = register("train")
    sampler = "RepeatFactorTrainingSampler"
    with pytest.raises(ValueError, match=f"'{sampler}'.* no annotations; .* 'TrainingSampler'"):
        Trainer(config(tmp_path, name, name, DATALOADER__SAMPLER_TRAIN=sampler))


def test_instances_of_other_classes_than_the_label_maps(register, tmp_path):
    file = tmp_path / "things.json"
    box = {"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10]], "area": 40}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 48} for i in range(3)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, **box} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "cow"}, {"id": 2, "name": "dog"}],
    }
    file.write_text(json.dumps(content))
    name = register("train", instances_json=file)
    options = {
        "INPUT__DATASET_MAPPER_NAME": "mask_former_instance_concept",
        "INPUT__CROP__ENABLED": False,
    }
    with pytest.raises(ValueError, match=r"2 categories .*'cow'.*3 classes .*'road'"):
        Trainer(config(tmp_path, name, name, **options))


def damage(folder):
    file = folder / "images" / "1.jpg"
    file.write_bytes(file.read_bytes()[:200])


def wrong_labels(folder):
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(folder / "labels" / "2.png")


def other_size(folder):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "labels" / "0.png")


def all_ignored(folder):
    for number in range(3):
        file = folder / "labels" / f"{number}.png"
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(file)


FAULTS = {
    damage: "1.jpg",
    wrong_labels: r"2.png holds the label\(s\) 7",
    other_size: "0.png",
    all_ignored: "none of the 3 images looked at has a labelled pixel",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_files_of_the_test_set(register, tmp_path, spoil):
    cfg = config(tmp_path, register("train"), register("val"))
    spoil(tmp_path / "val")
    with pytest.raises(ValueError, match=f"val_.* has faults:(.|\n)*{FAULTS[spoil]}"):
        Trainer(cfg)
    cfg.TEST.CHECK_FILES = 0
    Trainer(cfg)


class TestEvaluate:
    """--eval-only fails where nothing meaningful could come out."""

    def setup(self, register, tmp_path, **more):
        name = register("val")
        cfg = config(tmp_path, name, name, MODEL__WEIGHTS=tmp_path / "weights.pth", **more)
        return cfg, Trainer.build_model(cfg).state_dict()

    def test_nan(self, register, tmp_path):
        cfg, state = self.setup(register, tmp_path)
        name = next(name for name in state if name.endswith("class_embed.weight"))
        state[name][0] = float("nan")
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        with pytest.raises(ValueError, match=f"nan or infinite numbers in {name}.*diverged"):
            evaluate(cfg)

    def test_nan_in_statistics(self, register, tmp_path):
        norms = {"MODEL__RESNETS__NORM": "BN", "MODEL__SEM_SEG_HEAD__NORM": "BN"}
        cfg, state = self.setup(register, tmp_path, **norms)
        name = next(name for name in state if name.endswith("running_mean"))
        state[name][0] = float("nan")
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        with pytest.raises(ValueError, match=f"nan or infinite numbers in {name}.*diverged"):
            evaluate(cfg)

    def test_another_number_of_classes(self, register, tmp_path):
        cfg, _ = self.setup(register, tmp_path)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
        torch.save({"model": Trainer.build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        with pytest.raises(ValueError, match=r"class_embed.weight is \(6, 16\) in the file, \(4, "):
            evaluate(cfg)

    @pytest.mark.parametrize("tokens", [True, False])
    def test_all_labels_are_ignored(self, register, tmp_path, tokens):
        cfg, state = self.setup(register, tmp_path, TEST__TOKENS__ENABLED=tokens)
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        all_ignored(tmp_path / "val")
        with pytest.raises(ValueError, match="sem_seg: nothing could be measured"):
            evaluate(cfg)

    @pytest.mark.parametrize("count", [1, 2])
    def test_labels_that_a_server_has(self, register, tmp_path, count):
        cfg, state = self.setup(register, tmp_path)
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        hidden = register("test", labels=(255,))
        MetadataCatalog.get(hidden).set(labels_are_hidden=True)
        cfg.DATASETS.TEST = (hidden, *cfg.DATASETS.TEST)[:count]
        results = evaluate(cfg)
        assert results["sem_seg"] == {} if count == 1 else results[hidden]["sem_seg"] == {}

    @pytest.mark.parametrize("number", [3, 0.5, np.float32(0.5), torch.tensor(0.5)])
    def test_a_number_of_any_kind_is_measured(self, number):
        check_measured({"mine": {"value": number, "other": float("nan"), "none": None}})
        with pytest.raises(ValueError, match="val mine: nothing could be measured"):
            check_measured({"val": {"mine": {"value": number * float("nan")}}})
