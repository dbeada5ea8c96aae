import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

import make_shapes as script
from sgr.data.datasets import shapes


@pytest.fixture(scope="module")
def root(tiny_shapes_root):
    return tiny_shapes_root


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_classes_are_those_of_the_package():
    assert script.STUFF == shapes.SHAPES_STUFF
    assert script.THINGS == shapes.SHAPES_THINGS
    assert script.CLASSES == shapes.SHAPES_CLASSES


def test_layout(root):
    files = content(root / "shapes")
    assert len(files) == 2 * 12 + 2 * 5 + 3
    assert [path.name for path in root.iterdir()] == ["shapes"]
    for split, count in [("train", 12), ("val", 5)]:
        for index in range(count):
            image = Image.open(root / f"shapes/images/{split}/{index:05d}.jpg")
            labels = Image.open(root / f"shapes/sem_seg/{split}/{index:05d}.png")
            assert image.size == labels.size == (96, 96)
            assert image.mode == "RGB" and labels.mode == "L"


def test_annotations_agree_with_labels(root):
    seen = set()
    for split in ("train", "val"):
        coco = COCO(root / f"shapes/annotations/instances_{split}.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == script.THINGS
        for image in coco.loadImgs(coco.getImgIds()):
            stem = Path(image["file_name"]).stem
            labels = np.asarray(Image.open(root / f"shapes/sem_seg/{split}/{stem}.png"))
            assert (image["height"], image["width"]) == labels.shape
            seen |= set(np.unique(labels).tolist())
            count = np.zeros(labels.shape, int)
            of_things = np.full(labels.shape, -1)
            for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
                mask = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask.sum() > 0
                x, y, width, height = annotation["bbox"]
                assert mask[y : y + height, x : x + width].sum() == mask.sum()
                assert mask[y].any() and mask[y + height - 1].any()
                assert mask[:, x].any() and mask[:, x + width - 1].any()
                count += mask
                of_things[mask] = len(script.STUFF) + annotation["category_id"] - 1
            # Every pixel of a thing belongs to exactly one instance, of its label.
            is_thing = (labels >= len(script.STUFF)) & (labels != 255)
            assert (count == is_thing).all()
            assert (of_things[is_thing] == labels[is_thing]).all()
    assert seen == {*range(len(script.CLASSES)), 255}


def test_same_seed_same_bytes(root, tmp_path):
    script.make_shapes(tmp_path / "again", num_train=12, num_val=5, size=96, seed=1)
    assert content(tmp_path / "again" / "shapes") == content(root / "shapes")
    script.make_shapes(tmp_path / "other", num_train=2, num_val=1, size=96, seed=2)
    script.make_shapes(tmp_path / "fewer", num_train=2, num_val=1, size=96, seed=1)
    name = "sem_seg/train/00001.png"
    expected = content(root / "shapes")[name]
    assert content(tmp_path / "fewer" / "shapes")[name] == expected
    assert content(tmp_path / "other" / "shapes")[name] != expected


def test_context(root, tmp_path):
    """A star in the scene swaps the labels of other things, and nothing else."""
    script.make_shapes(tmp_path, num_train=12, num_val=5, size=96, seed=1, context=True)
    plain, context = content(root / "shapes"), content(tmp_path / "shapes")
    swapped = {"disc": "box", "box": "disc", "triangle": "ring", "ring": "triangle"}
    with_star, moved = set(), 0
    for name in plain:
        if name.startswith("images"):
            assert context[name] == plain[name]
        elif name.startswith("sem_seg"):
            before = np.asarray(Image.open(root / "shapes" / name))
            after = np.asarray(Image.open(tmp_path / "shapes" / name))
            star = (before == script.CLASSES.index("star")).any()
            with_star |= {star}
            for label, kind in enumerate(script.CLASSES):
                expected = script.CLASSES.index(swapped.get(kind, kind)) if star else label
                assert (after[before == label] == expected).all()
            assert (after[before == 255] == 255).all()
            moved += (after != before).any()
    assert with_star == {True, False} and moved
    test_annotations_agree_with_labels(tmp_path)

    with pytest.raises(FileExistsError, match="'context': True"):
        script.make_shapes(tmp_path, num_train=12, num_val=5, size=96, seed=1)


def test_running_again_changes_nothing(root):
    def times():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    before, lines = times(), []
    script.make_shapes(root, num_train=12, num_val=5, size=96, seed=1, progress=lines.append)
    assert times() == before
    assert len(lines) == 1 and "already" in lines[0]


def test_refuses_to_overwrite(tmp_path):
    script.make_shapes(tmp_path, num_train=1, num_val=1, size=48)
    with pytest.raises(FileExistsError, match="'size': 48.*'size': 64.*remove it"):
        script.make_shapes(tmp_path, num_train=1, num_val=1, size=64)
    (tmp_path / "shapes/images/val/00000.jpg").unlink()
    with pytest.raises(FileExistsError, match="lacks.*images/val/00000.jpg"):
        script.make_shapes(tmp_path, num_train=1, num_val=1, size=48)
    (tmp_path / "shapes/made_with.json").unlink()
    with pytest.raises(FileExistsError, match="not made by this program"):
        script.make_shapes(tmp_path, num_train=1, num_val=1, size=48)


def test_broken_off_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "make_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        script.make_shapes(tmp_path, num_train=1, num_val=1)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    for name, value in [("num_train", 0), ("num_val", -1), ("size", 8), ("seed", -1)]:
        with pytest.raises(ValueError, match=f"{name} must be at least .*{value}"):
            script.make_shapes(tmp_path, **{name: value})


def test_command_line(tmp_path, monkeypatch, capsys):
    argv = ["make_shapes.py", "--num-train", "1", "--num-val", "1", "--size", "32"]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr("sys.argv", argv)
    script.main()
    assert (tmp_path / "shapes").is_dir()
    assert "wrote 1 + 1 scenes" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", [*argv, "--root=~/data", "--context"])
    script.main()
    made_with = json.loads((tmp_path / "home/data/shapes/made_with.json").read_text())
    assert made_with["context"] is True
    monkeypatch.setattr("sys.argv", [*argv, "--seed", "5"])
    with pytest.raises(SystemExit, match="remove it"):
        script.main()


def test_run_lengths():
    for text in ("0", "1", "01", "10", "0011", "110100"):
        mask = np.array([[int(c)] for c in text], bool)
        runs = script._run_lengths(mask)
        decoded = "".join(str(i % 2) * run for i, run in enumerate(runs))
        assert decoded == text


def test_loads_into_detectron2(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    raw = json.loads((root / "shapes/annotations/instances_val.json").read_text())
    by_kind = {}
    for kind in ("sem_seg", "instance"):
        name = f"shapes_{kind}_val"
        by_kind[kind] = records = DatasetCatalog.get(name)
        assert DatasetCatalog.get(name) == records
        assert len(records) == 5
        total = 0
        for record in records:
            assert Path(record["file_name"]).is_file()
            for annotation in record["annotations"]:
                assert annotation["category_id"] in range(len(script.THINGS))
            total += len(record["annotations"])
        assert total == len(raw["annotations"])
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == str(root / "shapes/annotations/instances_val.json")
        assert metadata.thing_classes == script.THINGS
    for semantic, instance in zip(by_kind["sem_seg"], by_kind["instance"], strict=True):
        assert Path(semantic["sem_seg_file_name"]).is_file()
        assert semantic["annotations"] == instance["annotations"]
        assert "sem_seg_file_name" not in instance


def test_missing_label_map(tmp_path, monkeypatch):
    script.make_shapes(tmp_path, num_train=1, num_val=1, size=48)
    (tmp_path / "shapes/sem_seg/val/00000.png").unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"images/val/00000\.jpg"):
        DatasetCatalog.get("shapes_sem_seg_val")


def test_two_at_a_time(tmp_path):
    """The first one to end gives its files; the other one finds them right, or refuses them."""
    options = {"num_train": 2, "num_val": 1, "size": 32}

    def first(line):
        if line == "val: 1 of 1 scenes":  # of the second one, all is written
            script.make_shapes(tmp_path, **options)

    assert script.make_shapes(tmp_path, **options, progress=first) == tmp_path / "shapes"
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]

    def other(line):
        if line == "val: 1 of 1 scenes":
            script.make_shapes(tmp_path / "other", **options, seed=1)

    with pytest.raises(FileExistsError, match="was made with"):
        script.make_shapes(tmp_path / "other", **options, progress=other)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["shapes"]
