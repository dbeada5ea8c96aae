import json

import pytest
from pycocotools.coco import COCO

from sgr.inference import join_results

CATEGORIES = [{"id": 0, "name": "sky"}, {"id": 1, "name": "car"}]


def write(file, annotations, categories=CATEGORIES, name="a.jpg"):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = {"id": 1, "file_name": name, "height": 4, "width": 6}
    content = {"images": [image], "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def instance(number, category=1, **more):
    return {"id": number, "image_id": 1, "category_id": category, "bbox": [0, 0, 2, 3], **more}


def test_instances_as_coco_reads_them(tmp_path):
    folder = tmp_path / "instances"
    write(folder / "b.json", [instance(1, score=0.5), instance(2, 0)], name="b.jpg")
    write(folder / "a.json", [], name="a.jpg")
    write(folder / "more" / "a.json", [instance(1)], name="a.jpg")
    assert join_results(tmp_path) == [tmp_path / "instances.json"]
    coco = COCO(str(tmp_path / "instances.json"))
    images = [(image["id"], image["file_name"]) for image in coco.loadImgs([1, 2, 3])]
    assert images == [(1, "a.jpg"), (2, "b.jpg"), (3, "more/a.jpg")]
    assert [one["image_id"] for one in coco.loadAnns([1, 2, 3])] == [2, 2, 3]
    assert coco.loadAnns(1)[0]["score"] == 0.5
    assert coco.loadCats([0, 1]) == CATEGORIES
    assert not list(tmp_path.glob(".*"))


def test_panoptic_maps_are_found_in_their_folder(tmp_path):
    segments = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 7}]}
    names = [{**one, "isthing": 0} for one in CATEGORIES]
    things = [names[0], {**names[1], "isthing": 1}]
    write(tmp_path / "panoptic" / "x" / "a.json", [segments], names)
    write(tmp_path / "panoptic" / "y" / "a.json", [segments], things)
    assert join_results(tmp_path) == [tmp_path / "panoptic.json"]
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["annotations"] == [
        {**segments, "image_id": 1, "file_name": "x/a.png"},
        {**segments, "image_id": 2, "file_name": "y/a.png"},
    ]
    assert content["categories"] == things  # one image shows that it is a thing


def test_nothing_to_join(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no results to join"):
        join_results(tmp_path)


@pytest.mark.parametrize(
    "categories",
    [CATEGORIES[:1], [*CATEGORIES, {"id": 2, "name": "bus"}], [CATEGORIES[0], {"id": 1}]],
)
def test_other_classes(tmp_path, categories):
    write(tmp_path / "instances" / "a.json", [])
    write(tmp_path / "instances" / "b.json", [], categories)
    (tmp_path / "instances.json").write_text("before")
    with pytest.raises(ValueError, match="b.json has other classes than the files before it"):
        join_results(tmp_path)
    assert (tmp_path / "instances.json").read_text() == "before"


def damaged(images=({"file_name": "b.jpg"},), annotations=(), categories=CATEGORIES):
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", '{"images": []}', "[1]"),
        *(damaged(images=[image]) for image in ({}, 5, "b.jpg", ["b.jpg"], {"file_name": 5})),
        *(damaged(annotations=found) for found in (None, 5, [5], ["a"], [[]], {"a": 5})),
        damaged(annotations=[{"segments_info": []}]),
        *(damaged(categories=[one]) for one in (5, {}, {"id": "1"}, {"id": [1]})),
    ],
)
def test_damaged(tmp_path, text):
    write(tmp_path / "instances" / "a.json", [])
    (tmp_path / "instances" / "b.json").write_text(text)
    with pytest.raises(ValueError, match="b.json is no result of one image, or is damaged"):
        join_results(tmp_path)
