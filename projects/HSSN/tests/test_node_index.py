"""Which tree a config asks for."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from hssn import find_tree
from sgr.engine import load_config

SHAPES = {"DATASETS.TRAIN": "('shapes_sem_seg_train',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9}


def config(**keys):
    keys = {**SHAPES, **{key.replace("__", "."): value for key, value in keys.items()}}
    return load_config("", [str(each) for pair in keys.items() for each in pair])


def test_the_tree_of_the_data():
    tree = find_tree(config())
    assert tree.sizes == (9, 3) and tree.names[9:] == ("stuff", "round", "angular")
    tested = config(DATASETS__TRAIN="()", DATASETS__TEST="('shapes_sem_seg_val',)")
    assert find_tree(tested) == tree


def test_the_tree_of_the_config():
    rest = ("triangle", "star", "ring")
    own = [{"a": ["sky", "water", "grass", "wall"]}, {"b": ["disc", "box"]}, *rest]
    assert find_tree(config(MODEL__HSSN__TREE=own)).names[9:] == ("a", "b", *rest)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"DATASETS__TRAIN": "('nobody_has_this',)"},
            r"no tree of classes: .*\['nobody_has_this'\]",
        ),
        ({"DATASETS__TRAIN": "()"}, "no tree of classes"),
        (
            {"DATASETS__TRAIN": "()", "MODEL__HSSN__TREE": "['a', 'b']"},
            "no names of classes for MODEL.HSSN.TREE",
        ),
        ({"DATASETS__TRAIN": "('coco_2017_train_panoptic',)"}, "no tree of classes"),
        ({"MODEL__HSSN__TREE": "[{'a': ['sky']}]"}, "^MODEL.HSSN.TREE: classes that the tree does"),
        (
            {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 8},
            "NUM_CLASSES is 8, .* has 9 classes",
        ),
    ],
)
def test_mistakes(keys, message):
    with pytest.raises(ValueError, match=message):
        find_tree(config(**keys))


def test_a_wrong_tree_of_the_data():
    name = "hssn_wrong_tree"
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], class_tree={"c": ["a", "d"]})
    DatasetCatalog.register(name, list)
    try:
        with pytest.raises(ValueError, match=f"class_tree of {name}: 'd' in the tree is no class"):
            find_tree(config(DATASETS__TRAIN=f"('{name}',)"))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
