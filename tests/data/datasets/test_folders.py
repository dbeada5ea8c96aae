"""Datasets registered from folders of images and label maps."""

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import sgr
from sgr.data.datasets.classes import as_class_names
from sgr.data.datasets.folders import is_of_folders
from sgr.data.datasets.image_folders import Folders
from sgr.data.datasets.missing import IncompleteDataset
from sgr.data.mappers import build_mapper
from sgr.engine import load_config

HEIGHT, WIDTH = 24, 32


@pytest.fixture(autouse=True)
def forget_datasets():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(folder, names, labels=(0, 1, 2, 255), suffix=".jpg", label_suffix=""):
    """Images, and label maps with a stripe for each of ``labels``."""
    stripes = np.repeat(np.asarray(labels, np.uint8), WIDTH // len(labels))
    for name in names:
        for path, array in (
            (f"images/{name}{suffix}", np.zeros((HEIGHT, len(stripes), 3), np.uint8)),
            (f"labels/{name}{label_suffix}.png", np.tile(stripes, (HEIGHT, 1))),
        ):
            path = folder / path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return folder / "images", folder / "labels"


def stems(records):
    return [record["image_id"] for record in records]


class TestPairs:
    def test_subfolders_and_suffixes(self, tmp_path):
        write(tmp_path, ["a", "north/b"])
        folders = write(tmp_path, ["north/c"], suffix=".TIF")
        sgr.register_sem_seg("mine", *folders, classes=3)
        records = DatasetCatalog.get("mine")
        assert stems(records) == ["a", "north/b", "north/c"]
        assert records[2]["file_name"] == str(tmp_path / "images/north/c.TIF")
        assert records[2]["sem_seg_file_name"] == str(tmp_path / "labels/north/c.png")

    def test_links_to_folders_are_followed_and_hidden_ones_are_not(self, tmp_path):
        write(tmp_path / "elsewhere", ["b", ".hidden/c"])
        folders = write(tmp_path, ["a", ".hidden/d", "north/.e"])
        for folder in folders:
            (folder / "link").symlink_to(tmp_path / "elsewhere" / folder.name)
        sgr.register_sem_seg("mine", *folders, classes=3)
        records = DatasetCatalog.get("mine")
        assert stems(records) == ["a", "link/b"]
        assert records[1]["file_name"] == str(tmp_path / "images/link/b.jpg")

    def test_label_suffix_in_one_folder(self, tmp_path):
        for folder in ("images", "labels"):
            (tmp_path / folder).symlink_to(tmp_path / "all")
        (tmp_path / "all").mkdir()
        folder, _ = write(tmp_path, ["a", "b"], suffix=".png", label_suffix="_mask")
        sgr.register_sem_seg("mine", folder, folder, classes=3, label_suffix="_mask")
        records = DatasetCatalog.get("mine")
        assert stems(records) == ["a", "b"]
        assert records[0]["sem_seg_file_name"].endswith("a_mask.png")

        sgr.register_sem_seg("other", folder, folder, classes=3)
        with pytest.raises(ValueError, match="set a label_suffix, such as _mask"):
            DatasetCatalog.get("other")

    def test_other_files_than_label_maps(self, tmp_path):
        folders = write(tmp_path, ["a"], label_suffix="_label")
        Image.new("RGB", (4, 4)).save(tmp_path / "labels/a_color.png")
        sgr.register_sem_seg("mine", *folders, classes=3, label_suffix="_label")
        assert stems(DatasetCatalog.get("mine")) == ["a"]

    def test_what_is_missing_is_named(self, tmp_path):
        images, labels = write(tmp_path, ["a", "b"])
        sgr.register_sem_seg("no_images", tmp_path / "image", labels, classes=3)
        with pytest.raises(FileNotFoundError, match=f"folder of images {tmp_path}/image does not"):
            DatasetCatalog.get("no_images")
        sgr.register_sem_seg("no_labels", images, tmp_path / "label", classes=3)
        with pytest.raises(FileNotFoundError, match="folder of label maps .*/label does not"):
            DatasetCatalog.get("no_labels")
        sgr.register_sem_seg("suffix", images, labels, classes=3, label_suffix="_mask")
        expected = rf"images/a.jpg has no partner {labels}/a_mask.png \(and 1 more\)$"
        with pytest.raises(FileNotFoundError, match=expected):
            DatasetCatalog.get("suffix")
        sgr.register_sem_seg("empty", tmp_path / "empty", labels, classes=3)
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"empty holds no image \([^()]*\)$"):
            DatasetCatalog.get("empty")

    def test_what_is_there_is_kept(self, tmp_path):
        """For those who look at an incomplete dataset all the same."""
        images, labels = write(tmp_path, ["a", "north/b", "c"])
        (labels / "north/b.png").unlink()
        (images / "c.jpg").unlink()
        with pytest.raises(IncompleteDataset) as caught:
            Folders(images, labels).load_pairs()
        assert caught.value.faults == [
            f"image without a label map: {images}/north/b.jpg has no partner {labels}/north/b.png",
            f"label map without an image: {labels}/c.png has no partner {images}/c.*",
        ]
        assert stems(caught.value.records) == ["a"]

        (tmp_path / "list.txt").write_text("a\nd\ne\n")
        with pytest.raises(IncompleteDataset) as caught:
            Folders(images, labels, list_file=tmp_path / "list.txt").load_pairs()
        assert [fault.split()[2] for fault in caught.value.faults] == ["d,", "e,"]
        assert stems(caught.value.records) == ["a"]

    def test_list_file(self, tmp_path):
        folders = write(tmp_path, ["a", "b.c", "d", "north/e"])
        (tmp_path / "labels/d.png").unlink()  # of an image that is not listed
        list_file = tmp_path / "train.txt"
        list_file.write_text("./b.c\nnorth\\e.jpg\r\n\n")
        sgr.register_sem_seg("mine", *folders, classes=3, list_file=list_file)
        assert stems(DatasetCatalog.get("mine")) == ["b.c", "north/e"]
        list_file.write_text("a\nf\ng\n")
        with pytest.raises(FileNotFoundError, match=r"train.txt lists f \(and 1 more\), of which"):
            DatasetCatalog.get("mine")
        list_file.write_text("\n")
        with pytest.raises(ValueError, match="train.txt is empty"):
            DatasetCatalog.get("mine")
        list_file.write_bytes("\ufeffa\n".encode())
        assert stems(DatasetCatalog.get("mine")) == ["a"]
        list_file.write_bytes("straße\n".encode("latin-1"))
        with pytest.raises(ValueError, match="train.txt is not UTF-8 text; save it as UTF-8"):
            DatasetCatalog.get("mine")
        list_file.unlink()
        with pytest.raises(FileNotFoundError, match="no list of images .*train.txt"):
            DatasetCatalog.get("mine")

    def test_accents_are_stored_in_two_ways(self, tmp_path):
        composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
        images, labels = write(tmp_path, [composed])
        (images / f"{composed}.jpg").rename(images / f"{decomposed}.jpg")
        for listed in (composed, decomposed):
            (tmp_path / "list.txt").write_text(listed, encoding="utf-8")
            (record,) = Folders(images, labels, list_file=tmp_path / "list.txt").load_pairs()
            assert record["image_id"] == composed and Path(record["file_name"]).is_file()
        file = write_instances(tmp_path / "things.json", [f"{composed}.jpg"])
        sgr.register_sem_seg("mine", images, labels, classes=3, instances_json=file)
        assert [len(record["annotations"]) for record in DatasetCatalog.get("mine")] == [1]
        (labels / f"{composed}.png").rename(labels / f"{composed}_{decomposed}.png")
        (record,) = Folders(images, labels, label_suffix=f"_{composed}").load_pairs()
        assert record["image_id"] == composed

    def test_shares_are_stable_and_complete(self, tmp_path):
        def split(share):
            return stems(Folders(images, labels, share=share).load_pairs())

        images, labels = write(tmp_path, [f"{i:03d}" for i in range(100)])
        train, val = split((0.2, 1.0)), split((0.0, 0.2))
        assert sorted(train + val) == [f"{i:03d}" for i in range(100)]
        assert 10 <= len(val) <= 30
        write(tmp_path, [f"{i:03d}" for i in range(100, 140)])
        assert set(split((0.2, 1.0))) > set(train) and set(split((0.0, 0.2))) > set(val)
        with pytest.raises(ValueError, match="falls into the share 0 to 1e-09.*larger share"):
            split((0.0, 1e-9))


class TestMetadata:
    def test_defaults(self, tmp_path):
        sgr.register_sem_seg("mine", "images", "labels", classes=["sky", "road"])
        metadata = MetadataCatalog.get("mine")
        assert metadata.stuff_classes == ["sky", "road"]
        assert len(set(map(tuple, metadata.stuff_colors))) == 2
        assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"
        assert (metadata.image_root, metadata.sem_seg_root) == ("images", "labels")
        assert metadata.get("thing_classes") is None and metadata.get("json_file") is None
        sgr.register_sem_seg("part", "images", "labels", classes=2, list_file="train.txt")
        assert MetadataCatalog.get("part").get("image_root") is None
        assert is_of_folders("mine") and not is_of_folders("shapes_sem_seg_train")
        assert not is_of_folders("no such dataset")

    def test_colors(self):
        colors = [[1, 2, 3], [4, 5, 6]]
        sgr.register_sem_seg("mine", "images", "labels", classes=2, colors=colors)
        assert MetadataCatalog.get("mine").stuff_colors == [(1, 2, 3), (4, 5, 6)]
        for wrong, message in [
            (colors[:1], "1 colors for 2 classes"),
            ([[1, 2, 3], [1, 2]], "class 1 is"),
            ([[1, 2, 256], [1, 2, 3]], "class 0 is"),
            ([[1, 2, 3], [0, 0, -1]], "class 1 is"),
            ([[1, 2, 3], [0.5, 0, 0]], r"class 1 is \[0.5, 0, 0\], not three integers of 0 to 255"),
            ([[1, 2, 3], ["a", "b", "c"]], "class 1 is"),
            ([[1, 2, 3], [True, 0, 0]], "class 1 is"),
            ([[1, 2, 3], [1, [2], 3]], "class 1 is"),
            ([7, 8], "class 0 is 7"),
        ]:
            with pytest.raises(ValueError, match=message):
                sgr.register_sem_seg("other", "images", "labels", classes=2, colors=wrong)
        array = np.array(colors, np.uint8)
        sgr.register_sem_seg("array", "images", "labels", classes=2, colors=array)
        assert MetadataCatalog.get("array").stuff_colors == [(1, 2, 3), (4, 5, 6)]
        with pytest.raises(ValueError, match="colors without classes"):
            sgr.register_sem_seg("other", "images", "labels", colors=colors)

    def test_a_name_that_exists(self):
        with pytest.raises(ValueError, match="dataset 'shapes_sem_seg_train' already.*remove"):
            sgr.register_sem_seg("shapes_sem_seg_train", "images", "labels", classes=2)

    @pytest.mark.parametrize("ignored", [0, 2])
    def test_an_ignored_class(self, ignored):
        with pytest.raises(ValueError, match=f"ignore_label is {ignored}.*one of the 3 classes"):
            sgr.register_sem_seg("mine", "images", "labels", classes=3, ignore_label=ignored)
        assert "mine" not in DatasetCatalog

    def test_forms_of_classes(self, tmp_path):
        file = tmp_path / "classes.txt"
        file.write_bytes("\ufeffsky\r\nroad \r\nstreet lamp\r\n\r\n".encode())
        expected = ["sky", "road", "street lamp"]
        assert as_class_names(file) == as_class_names(str(file)) == expected
        assert as_class_names(tuple(expected)) == expected
        assert as_class_names(2) == ["class 0", "class 1"]

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (0, "is 0, and must be at least 2"),
            (1, "is 1, and must be at least 2"),
            (True, "got True"),
            ({0: "sky"}, r"got \{0: 'sky'\}"),
            (2.0, "got 2.0"),
            ([], r"classes names only \[\], and must name at least 2"),
            (["road"], r"only \['road'\], and must name at least 2.*such as background"),
            (["sky", False], "class 1 in classes is False, a bool; put it in quotes"),
            (["sky", " "], "class 1 in classes is empty"),
            (["sky", "road", "sky"], "names 'sky' twice: classes 0 and 2"),
        ],
    )
    def test_wrong_classes(self, classes, message):
        with pytest.raises(ValueError, match=message):
            as_class_names(classes)

    def test_wrong_files_of_classes(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file of class names .*none.txt"):
            as_class_names(tmp_path / "none.txt")
        file = tmp_path / "classes.txt"
        file.write_text("sky\n\nroad\n")
        with pytest.raises(ValueError, match="class 1 in .*classes.txt is empty"):
            as_class_names(file)
        file.write_bytes("sky\nStraße\n".encode("latin-1"))
        with pytest.raises(ValueError, match="classes.txt is not UTF-8 text; save it as UTF-8"):
            as_class_names(file)


class TestClassesOfTheLabelMaps:
    def test_are_found_once(self, tmp_path, caplog):
        folders = write(tmp_path, ["a"], labels=(0, 1, 255, 255))
        write(tmp_path, ["b"], labels=(0, 4, 4, 4))
        sgr.register_sem_seg("mine", *folders)
        assert MetadataCatalog.get("mine").get("stuff_classes") is None
        with caplog.at_level(logging.WARNING):
            DatasetCatalog.get("mine")
        assert "largest label in 2 label maps is 4, so there are 5 classes" in caplog.text
        assert "without a pixel: 2, 3" in caplog.text
        assert MetadataCatalog.get("mine").stuff_classes == [f"class {i}" for i in range(5)]
        assert len(MetadataCatalog.get("mine").stuff_colors) == 5
        caplog.clear()
        DatasetCatalog.get("mine")
        assert not caplog.text

    @pytest.mark.parametrize("labels", [(255, 255), (0, 255), (7, 7)])
    def test_a_single_one_is_a_mistake(self, tmp_path, labels):
        sgr.register_sem_seg("mine", *write(tmp_path, ["a"], labels=labels))
        with pytest.raises(ValueError, match="no two classes.*replace 255 by 1"):
            DatasetCatalog.get("mine")

    def test_an_ignored_label_among_them(self, tmp_path):
        sgr.register_sem_seg("mine", *write(tmp_path, ["a"], labels=(0, 1, 2, 2)), ignore_label=0)
        with pytest.raises(ValueError, match="ignore_label is 0.*subtract 1"):
            DatasetCatalog.get("mine")

    def test_colours_are_no_labels(self, tmp_path):
        folders = write(tmp_path, ["a"])
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "labels/a.png")
        sgr.register_sem_seg("mine", *folders)
        with pytest.raises(ValueError, match="a.png must have one channel"):
            DatasetCatalog.get("mine")


def write_instances(path, file_names):
    """A box in each image, of the second of two categories."""
    box = [2, 3, 10, 3, 10, 12, 2, 12]
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 10 + i, "file_name": name, "height": HEIGHT, "width": WIDTH}
                    for i, name in enumerate(file_names)
                ],
                "categories": [{"id": 3, "name": "car"}, {"id": 8, "name": "dog"}],
                "annotations": [
                    {
                        "id": i + 1,
                        "image_id": 10 + i,
                        "category_id": 8,
                        "bbox": [2, 3, 8, 9],
                        "area": 72,
                        "iscrowd": 0,
                        "segmentation": [box],
                    }
                    for i in range(len(file_names))
                ],
            }
        )
    )
    return path


class TestInstances:
    def test_annotations_of_some(self, tmp_path):
        folders = write(tmp_path, ["a", "north/b", "c"])
        file = write_instances(tmp_path / "things.json", ["c.jpg", "north/b.jpg", "elsewhere.jpg"])
        sgr.register_sem_seg("mine", *folders, classes=3, instances_json=file)
        records = DatasetCatalog.get("mine")
        assert stems(records) == ["a", "c", "north/b"]
        assert [len(record["annotations"]) for record in records] == [0, 1, 1]
        assert records[1]["annotations"][0]["category_id"] == 1
        assert (records[1]["height"], records[1]["width"]) == (HEIGHT, WIDTH)
        metadata = MetadataCatalog.get("mine")
        assert metadata.thing_classes == ["car", "dog"] and metadata.json_file == str(file)
        assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 8: 1}
        assert metadata.evaluator_type == "sem_seg"

    def test_an_image_that_is_listed_twice(self, tmp_path):
        folders = write(tmp_path, ["a", "b"])
        file = write_instances(tmp_path / "things.json", ["a.jpg", "b.jpg", "a.jpg"])
        sgr.register_sem_seg("mine", *folders, classes=3, instances_json=file)
        assert [len(record["annotations"]) for record in DatasetCatalog.get("mine")] == [2, 1]

    def test_paths_are_compared_in_their_shortest_form(self, tmp_path):
        _, labels = write(tmp_path, ["a", "north/b"])
        file = write_instances(tmp_path / "things.json", ["./a.jpg", "north/../north/b.jpg"])
        images = tmp_path / "labels" / ".." / "images"
        sgr.register_sem_seg("mine", images, labels, classes=3, instances_json=file)
        assert [len(record["annotations"]) for record in DatasetCatalog.get("mine")] == [1, 1]

    def test_faults(self, tmp_path):
        folders = write(tmp_path, ["a"])
        file = tmp_path / "things.json"
        sgr.register_sem_seg("mine", *folders, classes=3, instances_json=file)
        with pytest.raises(FileNotFoundError, match="no file of instances .*things.json"):
            DatasetCatalog.get("mine")
        write_instances(file, ["images/a.jpg"])
        with pytest.raises(ValueError, match="lists none of the 1 images.*'images/a.jpg'.*'a.jpg'"):
            DatasetCatalog.get("mine")


def test_a_mapper_reads_it(tmp_path):
    sgr.register_sem_seg("mine", *write(tmp_path, ["a"]), classes=["sky", "road", "car"])
    options = ["DATASETS.TRAIN", "('mine',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"]
    cfg = load_config("", [*options, "INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)"])
    record = build_mapper(cfg)(DatasetCatalog.get("mine")[0])
    assert record["image"].shape == (3, HEIGHT, WIDTH)
    assert record["sem_seg"].unique().tolist() == [0, 1, 2, 255]
    assert record["instances"].gt_classes.tolist() == [0, 1, 2]
    assert record["component_classes"].tolist() == [0, 1, 2]
