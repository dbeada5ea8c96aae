import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from sgr.inference import dataset_metadata, output_metadata
from sgr.visualization import distinct_colors
from tiny_model import tiny_config

STUFF = {"stuff_classes": ["sky", "cat"], "stuff_colors": [[1, 2, 3], [4, 5, 6]]}
THINGS = {"thing_classes": ["cat"], "thing_colors": [[7, 8, 9]]}


def test_names_and_colours_of_the_dataset():
    dataset = Metadata(name="cats", keypoint_names=["nose"], **STUFF, **THINGS)
    before = dataset.as_dict()
    result = output_metadata(dataset, 2)
    assert result.stuff_classes == ["sky", "cat"] and result.stuff_colors == [[1, 2, 3], [4, 5, 6]]
    assert result.thing_classes == ["cat", "class 1"]
    assert result.thing_colors == [[7, 8, 9], distinct_colors(2)[1].tolist()]
    assert result.keypoint_names == ["nose"]
    assert dataset.as_dict() == before


def test_a_model_that_numbers_all_classes_together():
    result = output_metadata(Metadata(**STUFF, **THINGS), 2, num_joint_classes=2)
    assert result.thing_classes == ["sky", "cat"] and result.thing_colors == STUFF["stuff_colors"]
    # The dataset's own ids number the things from 0.
    things = {"thing_dataset_id_to_contiguous_id": {17: 0}}
    result = output_metadata(Metadata(**STUFF, **THINGS, **things), 2, num_joint_classes=2)
    assert result.thing_dataset_id_to_contiguous_id == {1: 1}
    # Of instance data, which have no names of stuff.
    result = output_metadata(Metadata(**THINGS), 1, num_joint_classes=1)
    assert result.thing_classes == result.stuff_classes == ["cat"]
    assert result.stuff_colors == [[7, 8, 9]]


def test_unknown_classes_are_numbers():
    result = output_metadata(Metadata(name="nothing known"), 3)
    assert result.stuff_classes == result.thing_classes == ["class 0", "class 1", "class 2"]
    assert result.stuff_colors == result.thing_colors == distinct_colors(3).tolist()
    result = output_metadata(Metadata(stuff_classes=["sky", "cat"]), 1)
    assert result.thing_classes == ["sky", "cat"]


@pytest.fixture
def lazy_dataset(tmp_path):
    """A dataset whose metadata are filled when it is loaded."""
    name = f"lazy_{tmp_path.name}"

    def load():
        if not (tmp_path / "data").exists():
            raise FileNotFoundError("no data here\nand more")
        MetadataCatalog.get(name).thing_classes = ["cat"]
        return []

    DatasetCatalog.register(name, load)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_metadata_that_come_with_the_data(lazy_dataset, tmp_path, caplog):
    cfg = tiny_config(tmp_path)
    cfg.DATASETS.TEST = (lazy_dataset,)
    assert dataset_metadata(cfg).get("thing_classes") is None
    assert f"classes of {lazy_dataset} are not known" in caplog.text
    assert caplog.text.strip().endswith("no data here")
    (tmp_path / "data").touch()
    assert dataset_metadata(cfg).thing_classes == ["cat"]


def describe(folder, classes):
    """A model folder's description, as a stranger may have written it."""
    numbers = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9}
    content = {"classes": classes, "num_classes": numbers, "settings": {}, "metrics": {}}
    content |= {"format": 1, "sha256": "", "source": ""}
    (folder / "model.json").write_text(json.dumps(content))


def test_names_and_colours_of_a_folder(tmp_path):
    cfg = tiny_config(tmp_path)
    describe(tmp_path, {**STUFF, **THINGS, "things": [1], "class_tree": {"pet": ["cat"]}})
    cfg.MODEL.WEIGHTS = str(tmp_path)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    metadata = dataset_metadata(cfg)
    assert metadata.stuff_classes == ["sky", "cat"] and metadata.thing_colors == [[7, 8, 9]]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 1}


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("name", "mine", "not known"),
        ("as_dict", 5, "not known"),
        ("stuff_classes", 5, "list of names"),
        ("stuff_classes", "sky", "list of names"),
        ("thing_classes", ["cat", 5], "list of names"),
        ("stuff_colors", [[0, 0, 300]], "list of colours"),
        ("stuff_colors", [[0, -1, 0]], "list of colours"),
        ("stuff_colors", [[0, 0]], "list of colours"),
        ("thing_colors", [5], "list of colours"),
        ("thing_colors", {"cat": [0, 0, 0]}, "list of colours"),
        ("things", 5, "numbers of classes"),
        ("things", [[1]], "numbers of classes"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, key, value, expected):
    cfg = tiny_config(tmp_path)
    describe(tmp_path, {key: value})
    cfg.MODEL.WEIGHTS = str(tmp_path)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    with pytest.raises(ValueError, match=f"model.json' is damaged: {key} in .*{expected}"):
        dataset_metadata(cfg)


def test_metadata_of_no_dataset_and_of_absent_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = tiny_config(tmp_path)
    cfg.DATASETS.TEST = ()
    assert dataset_metadata(cfg).get("thing_classes") is None
    cfg.DATASETS.TEST = ("a dataset that nobody registered",)
    assert dataset_metadata(cfg).get("thing_classes") is None
    MetadataCatalog.remove(cfg.DATASETS.TEST[0])
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert len(dataset_metadata(cfg).thing_classes) == 80
