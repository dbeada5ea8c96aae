"""Datasets described by YAML files, and the templates of configs/your-data."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import sgr
from sgr.data.datasets import descriptions
from sgr.engine import Trainer, argument_parser, evaluate, load_config, setup_config
from tiny_model import CHECKOUT

TEMPLATES = CHECKOUT / "configs" / "your-data"
SPLITS = {
    "train": {"images": "images/train", "labels": "labels/train"},
    "val": {"images": "images/val", "labels": "labels/val"},
}


@pytest.fixture(autouse=True)
def forget_datasets(monkeypatch):
    before = set(DatasetCatalog.list())
    monkeypatch.setattr(descriptions, "_registered", {})
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    """Images and label maps of three classes, in ``data``."""
    labels = np.full((40, 64), 255, np.uint8)
    labels[:, :20], labels[:20, 20:], labels[20:, 30:] = 0, 1, 2
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            for kind, array in (("images", np.stack([labels] * 3, axis=2)), ("labels", labels)):
                file = tmp_path / "data" / kind / split / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    return tmp_path / "data"


def describe(folder, file="data.yaml", **content):
    content = {"name": "mine", "classes": ["sky", "road", "car"], "splits": SPLITS, **content}
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: each for key, each in content.items() if each != "none"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def options(path, **more):
    more = {
        "DATASETS.FILES": [str(path)],
        "DATASETS.TRAIN": ("mine_train",),
        "DATASETS.TEST": ("mine_val",),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [str(each) for pair in more.items() for each in pair]


class TestDescription:
    def test_paths_are_relative_to_the_file(self, folder, tmp_path, monkeypatch):
        (folder / "names.txt").write_text("sky\nroad\ncar\n")
        describe(folder, classes="names.txt", ignore_label=254)
        monkeypatch.chdir(tmp_path)
        assert sgr.register_dataset_file("data/data.yaml") == ["mine_train", "mine_val"]
        records = DatasetCatalog.get("mine_train")
        assert [record["image_id"] for record in records] == list("0123")
        assert records[0]["file_name"] == str(folder / "images/train/0.png")
        assert len(DatasetCatalog.get("mine_val")) == 2
        metadata = MetadataCatalog.get("mine_val")
        assert metadata.stuff_classes == ["sky", "road", "car"] and metadata.ignore_label == 254

    def test_tree(self, folder):
        tree = {"up": ["sky"], "down": {"street": ["road"], "things": ["car"]}}
        for name in sgr.register_dataset_file(describe(folder, tree=tree)):
            assert MetadataCatalog.get(name).class_tree == tree
        tree = {"c": ["a", "b"]}
        sgr.register_sem_seg("other", "images", "labels", classes=["a", "b"], tree=tree)
        assert MetadataCatalog.get("other").class_tree == tree

    def test_paths_in_the_home_folder(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        (folder / "names.txt").write_text("sky\nroad\n")
        splits = {"train": {key: f"~/data/{path}" for key, path in SPLITS["train"].items()}}
        describe(folder, classes="~/data/names.txt", splits=splits)
        sgr.register_dataset_file("~/data/data.yaml")
        assert len(DatasetCatalog.get("mine_train")) == 4
        assert MetadataCatalog.get("mine_train").stuff_classes == ["sky", "road"]
        load_config("", ["DATASETS.FILES", "['~/data/data.yaml']"])

    def test_lists_of_one_folder(self, folder):
        (folder / "a.txt").write_text("0\n2\n")
        (folder / "b.txt").write_text("1.png\n")
        describe(
            folder,
            **SPLITS["train"],
            splits={"train": {"list": "a.txt"}, "val": {"list": "b.txt"}, "all": None},
        )
        names = sgr.register_dataset_file(folder / "data.yaml")
        found = [[record["image_id"] for record in DatasetCatalog.get(name)] for name in names]
        assert found == [["0", "2"], ["1"], list("0123")]

    def test_share(self, folder):
        describe(folder, **SPLITS["train"], splits="none", val_share=0.5)
        train, val = map(DatasetCatalog.get, sgr.register_dataset_file(folder / "data.yaml"))
        stems = [record["image_id"] for record in train + val]
        assert sorted(stems) == list("0123") and train and val

    def test_share_of_the_validation(self, folder):
        describe(folder, **SPLITS["train"], splits="none", val_share=0.2)
        names = sgr.register_dataset_file(folder / "data.yaml")
        label = (folder / "labels/train/0.png").read_bytes()
        for index in range(4, 50):
            for kind in ("images", "labels"):
                (folder / kind / "train" / f"{index}.png").write_bytes(label)
        train, val = map(DatasetCatalog.get, names)
        assert names == ["mine_train", "mine_val"]
        assert len(train) + len(val) == 50 and 4 <= len(val) <= 16
        # They share a folder, so it is not what one of them consists of.
        assert all(MetadataCatalog.get(name).get("image_root") is None for name in names)

    def test_labels_of_16_bits_without_classes(self, folder):
        """They would ask for a matrix of confusion of 65536 x 65536."""
        file = folder / "labels/val/0.png"
        Image.fromarray(np.full((40, 64), 65534, np.uint16)).save(file)
        describe(folder, classes="none")
        descriptions.register_dataset_file(folder / "data.yaml")
        with pytest.raises(ValueError, match="no classes are named .* has the label 65534; name"):
            DatasetCatalog.get("mine_train")

    def test_classes_are_those_of_all_splits(self, folder, caplog):
        labels = np.full((40, 64), 4, np.uint8)
        Image.fromarray(labels).save(folder / "labels/val/0.png")
        describe(folder, classes="none")
        sgr.register_dataset_file(folder / "data.yaml")
        with caplog.at_level(logging.WARNING):
            DatasetCatalog.get("mine_train")
        assert "largest label in 6 label maps is 4" in caplog.text
        for split in SPLITS:
            assert len(MetadataCatalog.get(f"mine_{split}").stuff_classes) == 5

    def test_missing_data_are_told_when_loaded(self, folder):
        splits = {"train": {"images": "photos", "labels": "labels/train"}}
        sgr.register_dataset_file(describe(folder, splits=splits))
        with pytest.raises(FileNotFoundError, match="folder of images .*photos does not"):
            DatasetCatalog.get("mine_train")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"clases": 3}, "no key clases; known keys are name, classes, ignore_label"),
            (
                {"splits": {"train": {"image": "a"}}},
                "no key splits.train.image; known keys are images",
            ),
            ({"splits": {"train": {"images": "a"}}}, "split train has no labels"),
            ({"splits": {"train": "images"}}, "splits.train must have keys"),
            ({"splits": {}}, "splits has none"),
            ({"splits": "none"}, "either splits, or val_share"),
            ({"val_share": 0.1}, "either splits, or val_share"),
            ({"splits": "none", "val_share": 1.5}, "val_share is 1.5"),
            ({"splits": ["train"]}, r"splits is \['train'\], of type list; expected is dict"),
            ({"name": "none"}, "no name"),
            ({"name": 7}, "name is 7, of type int; expected is str"),
            ({"ignore_label": "255"}, "ignore_label is '255', of type str; expected is int"),
            ({"ignore_label": True}, "ignore_label is True, of type bool; expected is int"),
            ({"classes": {0: "sky"}}, "expected is list or str or int"),
            ({"classes": ["sky", True]}, "class 1 in classes is True, a bool"),
            ({"classes": ["sky"]}, r"only \['sky'\], and must name at least 2"),
            ({"colors": [[0, 0, 0]]}, "1 colors for 3 classes"),
            ({"tree": {"up": ["sky"], "down": ["raod"]}}, "'raod' .* did you mean 'road'"),
            ({"tree": {"up": ["sky"]}}, "the tree does not have: road, car"),
            ({"tree": ["sky"], "classes": "none"}, "tree without classes"),
            ({"colors": [["a", 0, 0]] * 3}, r"class 0 is \['a', 0, 0\], not three integers"),
        ],
    )
    def test_mistakes(self, folder, content, message):
        path = describe(folder, **content)
        with pytest.raises(ValueError, match=message) as caught:
            sgr.register_dataset_file(path)
        assert str(path) in str(caught.value)
        assert "mine_train" not in DatasetCatalog

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- name\n", "has keys"),
            ("", "has keys"),
            ("name: [\n", "no valid YAML"),
            ("name: !!python/object/apply:os.getcwd []\n", "no valid YAML.*python"),
        ],
    )
    def test_other_files(self, tmp_path, text, message):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match="(?s)data.yaml: .*" + message):
            sgr.register_dataset_file(tmp_path / "data.yaml")

    def test_not_utf8(self, folder):
        (folder / "data.yaml").write_bytes("name: straße\n".encode("latin-1"))
        with pytest.raises(ValueError, match="data.yaml is not UTF-8 text; save it as UTF-8"):
            sgr.register_dataset_file(folder / "data.yaml")

    def test_missing_files(self, folder):
        with pytest.raises(FileNotFoundError, match="no description of a dataset .*none.yaml"):
            sgr.register_dataset_file(folder / "none.yaml")
        with pytest.raises(FileNotFoundError, match="no file of class names .*data/names.txt"):
            sgr.register_dataset_file(describe(folder, classes="names.txt"))


class TestAgain:
    def test_the_same_file(self, folder, monkeypatch):
        path = describe(folder)
        sgr.register_dataset_file(path)
        metadata = MetadataCatalog.get("mine_train")
        monkeypatch.chdir(folder)
        assert sgr.register_dataset_file("data.yaml") == ["mine_train", "mine_val"]
        assert MetadataCatalog.get("mine_train") is metadata

    def test_a_file_that_has_changed(self, folder):
        sgr.register_dataset_file(describe(folder))
        splits = {"train": SPLITS["train"], "test": SPLITS["val"]}
        sgr.register_dataset_file(describe(folder, classes=4, splits=splits))
        assert len(MetadataCatalog.get("mine_train").stuff_classes) == 4
        assert "mine_test" in DatasetCatalog and "mine_val" not in DatasetCatalog

    @pytest.mark.parametrize("wrong", [{"name": "shapes_sem_seg"}, {"ignore_label": 0}])
    def test_a_file_that_has_changed_and_is_refused(self, folder, wrong):
        sgr.register_dataset_file(describe(folder))
        with pytest.raises(ValueError, match="already|one of the 3 classes"):
            sgr.register_dataset_file(describe(folder, **wrong))
        assert len(DatasetCatalog.get("mine_train")) == 4
        sgr.register_dataset_file(describe(folder, classes=4))
        assert len(MetadataCatalog.get("mine_train").stuff_classes) == 4

    def test_another_file_of_the_same_name(self, folder):
        sgr.register_dataset_file(describe(folder))
        other = describe(folder, "other.yaml")
        with pytest.raises(ValueError, match="other.yaml: .*data.yaml describes a dataset"):
            sgr.register_dataset_file(other)
        assert len(DatasetCatalog.get("mine_train")) == 4

    def test_a_name_that_is_taken(self, folder):
        path = describe(folder, name="shapes_sem_seg")
        with pytest.raises(ValueError, match="data.yaml: .*'shapes_sem_seg_train' already"):
            sgr.register_dataset_file(path)


class TestConfig:
    def test_registers_and_counts_the_classes(self, folder):
        opts = options(describe(folder))
        for _ in range(2):
            cfg = load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)
            assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
        assert len(DatasetCatalog.get("mine_val")) == 2

    def test_counts_the_classes_of_the_label_maps(self, folder):
        opts = options(describe(folder, classes="none"))
        cfg = load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3

    @pytest.mark.parametrize("mapper", ["semantic_concept", "mask_former_semantic_concept"])
    @pytest.mark.parametrize("number", [2, 54])
    def test_another_number_of_classes(self, folder, mapper, number):
        opts = options(
            describe(folder),
            MODEL__SEM_SEG_HEAD__NUM_CLASSES=number,
            INPUT__DATASET_MAPPER_NAME=mapper,
        )
        message = f"NUM_CLASSES is {number}, but the dataset mine_train has 3 classes"
        with pytest.raises(ValueError, match=message):
            load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)

    def test_the_same_of_a_dataset_registered_by_a_call(self):
        sgr.register_sem_seg("mine", "images", "labels", classes=3)
        with pytest.raises(ValueError, match="NUM_CLASSES is 54, but the dataset mine has 3"):
            load_config("", ["DATASETS.TEST", "('mine',)"])

    def test_a_detector_has_other_classes(self, folder):
        config = CHECKOUT / "configs" / "shapes" / "mask_rcnn_R50.yaml"
        load_config(str(config), options(describe(folder)))

    def test_datasets_that_differ(self, folder):
        opts = options(describe(folder), DATASETS__TEST="('shapes_sem_seg_val',)")
        with pytest.raises(ValueError, match="different numbers.*mine_train': 3, 'shapes.*: 9"):
            load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)

    def test_a_dataset_that_is_not_described(self, folder):
        opts = options(describe(folder), DATASETS__TRAIN="('mine_trian',)")
        with pytest.raises(ValueError, match="'mine_trian', which is not.*mine_train, mine_val"):
            load_config("", opts)
        with pytest.raises(ValueError, match=r"'mine', which is not.* \[\] describes nothing"):
            load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), ["DATASETS.TRAIN", "('mine',)"])
        load_config("", ["DATASETS.TRAIN", "('mine',)"])  # somebody may register it later

    def test_a_written_config_is_good_in_any_folder(self, folder, tmp_path, monkeypatch):
        opts = options(describe(folder).name)
        monkeypatch.chdir(folder)
        cfg = load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)
        Path("written.yaml").write_text(cfg.dump())
        monkeypatch.chdir(tmp_path)
        again = load_config(str(folder / "written.yaml"))
        assert again.DATASETS == cfg.DATASETS and len(DatasetCatalog.get("mine_val")) == 2
        message = r"'data.yaml' \(.*relative to the current folder.*\[\]"
        with pytest.raises(FileNotFoundError, match=message):
            load_config(str(TEMPLATES / "fcn_R50_sgr.yaml"), opts)
        (folder / "data.yaml").unlink()
        written = str(folder / "written.yaml")
        assert load_config(written, ["DATASETS.FILES", "[]"]).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3

    def test_no_dataset(self):
        template = str(TEMPLATES / "fcn_R50_sgr.yaml")
        assert load_config(template).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0
        with pytest.raises(ValueError, match=r"NUM_CLASSES\) is 0.*docs/your_data.md"):
            setup_config(argument_parser().parse_args(["--config-file", template]))


MODELS = sorted(path for path in TEMPLATES.glob("*.yaml") if not path.stem.startswith("Base"))


@pytest.mark.parametrize("template", MODELS, ids=lambda path: path.stem)
def test_templates_build(folder, template):
    less = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT": "scores",
    }
    cfg = load_config(str(template), options(describe(folder), **less))
    model = build_model(cfg)
    assert cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0 and cfg.TEST.TOKENS.ENABLED
    with torch.no_grad():
        output = model.eval()([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])[0]
    assert output["sem_seg"].shape == (3, 32, 48)


@pytest.mark.parametrize("template", MODELS, ids=lambda path: path.stem)
def test_templates_need_a_number_of_classes(template):
    """Tools that do without data get no further than here."""
    with pytest.raises(ValueError, match=r"NUM_CLASSES\) is 0.*docs/your_data.md"):
        build_model(load_config(str(template), ["MODEL.DEVICE", "cpu"]))


def test_mistakes_in_the_validation_data_are_told_before_the_training(folder):
    (folder / "labels/val/1.png").unlink()
    template = str(TEMPLATES / "maskformer_R50_sgr_small.yaml")
    cfg = load_config(template, options(describe(folder), MODEL__DEVICE="cpu"))
    for run in (Trainer, evaluate):
        with pytest.raises(FileNotFoundError, match="val/1.png has no partner .*val/1.png"):
            run(cfg)


def test_trains_and_evaluates(folder, tmp_path, monkeypatch):
    """As docs/your_data.md has it: a config of one's own, and nothing else."""
    monkeypatch.chdir(folder)
    describe(folder)
    Path("train.yaml").write_text(
        "_BASE_: configs/your-data/maskformer_R50_sgr_small.yaml\n"
        "DATASETS:\n"
        '  FILES: ["data.yaml"]\n'
        '  TRAIN: ("mine_train",)\n'
        '  TEST: ("mine_val",)\n'
        "OUTPUT_DIR: output\n"
    )
    less = {
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.SGR.TOKEN_DIM": 16,
        "INPUT.CROP.SIZE": (32, 32),
        "INPUT.MIN_SIZE_TRAIN": (40,),
        "INPUT.MIN_SIZE_TEST": 40,
        "SOLVER.MAX_ITER": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.DEVICE": "cpu",
    }
    cfg = load_config("train.yaml", [str(each) for pair in less.items() for each in pair])
    trainer = Trainer(cfg)
    trainer.train()
    results = trainer.test(cfg, trainer.model)
    assert {"IoU-sky", "IoU-road", "IoU-car"} < results["sem_seg"].keys()
    assert results["tokens"]["images_C"] == 2


@pytest.mark.parametrize("name", ["/abs/x", "../..", "a/b", "a\\b", "..", ".x", "a\nb", "a" * 200])
@pytest.mark.parametrize("key", ["name", "splits"])
def test_names_that_are_paths(folder, name, key):
    """Contact sheets and results lie in folders with the names of datasets."""
    value = name if key == "name" else {name: SPLITS["train"]}
    with pytest.raises(ValueError, match="without / and"):
        descriptions.register_dataset_file(describe(folder, **{key: value}))


@pytest.mark.parametrize("classes", [10**9, None, list(map(str, range(100_000)))])
def test_far_too_many_classes(folder, classes):
    if classes is None:  # more digits than Python writes
        file = describe(folder, classes=2)
        text = file.read_text().replace("classes: 2", "classes: 0x" + "f" * 5000)
        file.write_text(text)
    else:
        file = describe(folder, classes=classes)
    with pytest.raises(ValueError, match="at most"):
        descriptions.register_dataset_file(file)


@pytest.mark.parametrize("key", ["classes", "name", "colors", "images", "unknown"])
def test_deep_values_and_references(folder, key):
    """Neither recursion nor a message of gigabytes."""
    file = describe(folder, **{key: "none"})
    text = file.read_text()
    file.write_text(f"{text}{key}: {'[' * 5000}{']' * 5000}\n")
    with pytest.raises(ValueError, match="nested too deeply"):
        descriptions.register_dataset_file(file)
    levels = "".join(f"- &r{n} [{', '.join([f'*r{n - 1}'] * 9)}]\n" for n in range(1, 30))
    file.write_text(f"{text}{key}:\n- &r0 [a, b]\n{levels}")
    with pytest.raises(ValueError) as error:
        descriptions.register_dataset_file(file)
    assert len(str(error.value)) < 2000


def test_a_test_split_without_labels_points_to_the_demo(folder):
    """Not named, named and missing, or an empty folder."""
    images = {"images": "images/val"}
    with pytest.raises(ValueError, match=r"test has no labels.*tools/demo\.py"):
        descriptions.register_dataset_file(describe(folder, splits={"test": images}))
    splits = {"test": {**images, "labels": "labels/test"}}
    [name] = descriptions.register_dataset_file(describe(folder, splits=splits))
    with pytest.raises(FileNotFoundError, match=r"does not exist.*tools/demo\.py"):
        DatasetCatalog.get(name)
    (folder / "labels" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no partner.*tools/demo\.py"):
        DatasetCatalog.get(name)
