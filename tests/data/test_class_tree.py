"""Trees of classes: how they are read, numbered and drawn, and what is refused."""

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

import sgr.engine  # noqa: F401 (registers)
from sgr.data.class_tree import ClassTree

NAMES = ["cat", "dog", "car", "sky", "road"]
TREE = {"thing": {"animal": ["cat", "dog"], "vehicle": ["car"]}, "sky": None, "flat": "road"}


def test_numbers():
    tree = ClassTree.parse(TREE, NAMES)
    assert tree.names == (*NAMES, "animal", "vehicle", "sky", "flat", "thing", "sky", "flat")
    assert tree.sizes == (5, 4, 3) and tree.starts == (0, 5, 9) and tree.num_classes == 5
    assert tree.ancestors == ((0, 1, 2, 3, 4), (5, 5, 6, 7, 8), (9, 9, 9, 10, 11))
    assert [places.tolist() for places in tree.parents] == [[0, 0, 1, 2, 3], [0, 0, 1, 2]]
    assert tree.groups.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]


def test_a_level_is_a_height():
    """A superclass is in the level above its highest child, not in that of its depth."""
    names = ["a", "b", "c"]
    tree = ClassTree.parse({"all": {"deep": {"deeper": ["a"]}, "b": None}, "other": ["c"]}, names)
    assert tree.names == ("a", "b", "c", "deeper", "b", "other", "deep", "b", "other") + (
        "all",
        "other",
    )


def test_distances():
    """Edges, counted along the paths of a literal tree with a root above all."""
    tree = ClassTree.parse(TREE, NAMES)
    paths = [[*path, -1] for path in zip(*tree.ancestors)]
    for first, path in enumerate(paths):
        for second, other in enumerate(paths):
            common = next(node for node in path if node in other)
            assert tree.distances[first, second] == path.index(common) + other.index(common)
    assert tree.height == 3
    assert ClassTree.parse({"root": TREE}, NAMES).height == 3  # between a class and "root"
    assert ClassTree.parse(NAMES, NAMES).height == 1


def test_order_of_the_file_plays_no_role():
    things = [{"vehicle": ["car"]}, {"animal": ["dog", "cat"]}]
    turned = {"flat": ["road"], "sky": [], "thing": things}
    assert ClassTree.parse(turned, NAMES) == ClassTree.parse(TREE, NAMES)


def test_a_superclass_of_its_own_name():
    """It is the same as none, which a level is made up for."""
    assert ClassTree.parse({**TREE, "sky": ["sky"]}, NAMES) == ClassTree.parse(TREE, NAMES)


def test_one_level():
    tree = ClassTree.parse(NAMES, NAMES)
    assert (
        tree.sizes == (5,) and tree.parents == () and np.unique(tree.distances).tolist() == [0, 2]
    )


def test_drawing():
    assert ClassTree.parse(TREE, NAMES).draw().splitlines() == [
        "thing",
        "├── animal",
        "│   ├── 0 cat",
        "│   └── 1 dog",
        "└── vehicle",
        "    └── 2 car",
        "3 sky",
        "flat",
        "└── 4 road",
    ]


CYCLE: dict = {}
CYCLE["a"] = {"b": CYCLE}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": {"a": ["cat"]}}}, "'a' is inside of itself in the tree: a > b > a"),
        (CYCLE, "'a' is inside of itself"),
        ({"cat": {"cat": ["cat"]}}, "'cat' is inside of itself"),
        ({"a": NAMES, "b": ["dog"]}, "class 'dog' is in the tree twice, under 'a' and 'b'"),
        ([*NAMES, "dog"], "'dog' is in the tree twice, under the top and the top"),
        ({"a": {"c": ["cat"]}, "b": {"c": ["dog"]}}, "two superclasses 'c'"),
        ({"a": ["cot"]}, "'cot' in the tree is no class, .* did you mean 'cat'?"),
        ({"a": ["cat"], "empty": {}}, "'empty' in the tree is no class, and has no children"),
        ({"cat": ["dog", "car"]}, "class 'cat' has children in the tree: dog, car"),
        ({"a": ["cat", "dog"]}, "classes that the tree does not have: car, sky, road"),
        ({}, "does not have: cat, dog"),
        ({"a": 3}, "the children of 'a' must be a mapping .* not 3"),
        ({"a": [True]}, "a name in the children of 'a' is True, which is no text"),
        ({7: ["cat"]}, "a name in the tree is 7"),
        ([["cat"]], "a name in the tree is \\['cat'\\]"),
    ],
)
def test_wrong_trees(tree, message):
    with pytest.raises(ValueError, match=message):
        ClassTree.parse(tree, NAMES)


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        ("cityscapes_fine_sem_seg_val", (19, 7)),
        ("cityscapes_fine_panoptic_train", (19, 7)),
        ("camvid_sem_seg_train", (11, 7)),
        ("coco_stuff_10k_sem_seg_test", (171, 27)),
        ("shapes_sem_seg_val", (9, 3)),
    ],
)
def test_built_in_trees(dataset, sizes):
    metadata = MetadataCatalog.get(dataset)
    assert ClassTree.parse(metadata.class_tree, metadata.stuff_classes).sizes == sizes
