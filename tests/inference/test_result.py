"""The arrays of a result, and its files as other programs read them."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import masks_to_boxes

from sgr.data.truth.image_files import read_labels
from sgr.inference import Result, output_metadata, read_comment, write_picture
from sgr.modeling.reasoning import ConceptRegions

SIZE = (60, 80)
JOINT = output_metadata(
    Metadata(
        stuff_classes=["sky", "road", "car"], thing_dataset_id_to_contiguous_id={7: 2}, name="x"
    ),
    num_classes=3,
    num_joint_classes=3,
)
SEPARATE = output_metadata(Metadata(stuff_classes=["sky", "road"], thing_classes=["car"]), 1)


def make(output, metadata=JOINT, **options):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    return Result(image, output, metadata, input_size=(30, 40), name="street.jpg", **options)


@pytest.fixture
def scores():
    """Sky above road."""
    scores = torch.zeros(3, *SIZE)
    scores[0, :30], scores[1, 30:] = 2, 1
    return scores


@pytest.fixture
def instances():
    """Three cars, two of them sure."""
    found = Instances(SIZE)
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 5:40, 5:50] = masks[1, 20:31, 20:33] = masks[2, :5, :5] = True
    found.pred_masks = masks
    found.pred_boxes = Boxes(masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1]))
    found.scores = torch.tensor([0.9, 0.6, 0.3])
    found.pred_classes = torch.tensor([2, 2, 2])
    return found


@pytest.fixture
def panoptic():
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:30], ids[30:50] = 1, 70_000
    return ids, [
        {"id": 1, "isthing": False, "category_id": 0},
        {"id": 70_000, "isthing": True, "category_id": 2},
    ]


def test_what_is_not_put_out_is_none(scores):
    result = make({"sem_seg": scores.argmax(0)})
    assert result.scores is result.instances is result.segments is None
    assert result.tokens is result.regions is None
    assert make({}).labels is None


def test_labels_and_scores(scores):
    result = make({"sem_seg": scores})
    np.testing.assert_array_equal(result.labels, np.repeat([0, 1], 30)[:, None].repeat(80, 1))
    np.testing.assert_array_equal(result.scores, scores.numpy())
    probabilities = make({"sem_seg": scores}, logits=True).scores
    expected = np.exp(scores.numpy()) / np.exp(scores.numpy()).sum(0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_instances_from_the_threshold_on(instances):
    found = make({"instances": instances}).instances
    assert found.labels.tolist() == [2, 2] and found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.boxes.tolist() == [[5, 5, 50, 40], [20, 20, 33, 31]]
    assert found.masks.dtype == bool and found.masks.sum(axis=(1, 2)).tolist() == [35 * 45, 143]
    assert len(make({"instances": instances}, score_threshold=0).instances) == 3
    instances.remove("pred_masks")
    assert make({"instances": instances}).instances.masks is None


def test_segments(panoptic):
    found = make({"panoptic_seg": panoptic}).segments
    np.testing.assert_array_equal(found.ids, panoptic[0].numpy())
    assert [(each["name"], each["area"]) for each in found.segments] == [
        ("sky", 2400),
        ("car", 1600),
    ]


def test_regions(scores):
    logits = torch.full((1, 2, 3, 4), -9.0)
    logits[0, 0, :1] = logits[0, 1, 2:] = 9
    result = make({"sem_seg": scores, "concept_regions": ConceptRegions(logits, stride=10)})
    np.testing.assert_allclose(result.regions, logits[0].sigmoid().numpy(), rtol=1e-6)
    assert result.tokens.classes.values.argmax(axis=1).tolist() == [0, 1]  # sky, road
    assert result.picture(2).shape[0] == 360


def test_the_picture_and_the_notebook(scores, monkeypatch):
    result = make({"sem_seg": scores})
    assert result.picture().shape == (60, 164, 3) and result.picture(beside=False).shape == (
        60,
        80,
        3,
    )
    assert result._repr_png_().startswith(b"\x89PNG")
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    result.show()
    notebook = types.SimpleNamespace(
        get_ipython=lambda: "a shell",
        display=types.SimpleNamespace(display=lambda image: shown.append("notebook")),
    )
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    result.show()
    assert shown == [(164, 60), "notebook"]


def test_a_file_gets_the_picture_alone(scores, tmp_path):
    files = make({"sem_seg": scores}).save(tmp_path / "new" / "x.jpg")
    assert files == [tmp_path / "new" / "x.jpg"] and Image.open(files[0]).size == (164, 60)
    assert list((tmp_path / "new").iterdir()) == files


def test_the_image_itself_is_not_overwritten(scores, tmp_path):
    """Neither by the picture nor by the labels, and nothing is written beside it."""
    for source in (tmp_path / "street.jpg", tmp_path / "labels" / "street.png"):
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(b"a photo")
        result = make({"sem_seg": scores}, source=source)
        for target in {tmp_path, source}:
            with pytest.raises(ValueError, match=f"would overwrite the input {source}; name an"):
                result.save(target)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files == [source] and source.read_bytes() == b"a photo"
        source.unlink()
        assert result.save(tmp_path)[0] == tmp_path / "street.jpg"  # there is none any more
        (tmp_path / "street.jpg").unlink()
        (tmp_path / "labels" / "street.png").unlink()


def test_what_cannot_be_drawn_is_written(scores, tmp_path, monkeypatch):
    """Detectron2's Visualizer refuses an image that is two pixels wide."""

    def refuse(*args):
        raise AssertionError("(60, 2)")

    result = make({"sem_seg": scores})
    monkeypatch.setattr(result, "picture", refuse)
    with pytest.raises(AssertionError):
        result.save(tmp_path)
    assert (read_labels(str(tmp_path / "labels" / "street.png")) == result.labels).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_comment_in_a_picture(name, tmp_path):
    write_picture(tmp_path / name, Image.new("RGB", (9, 9)), "made of x")
    assert read_comment(tmp_path / name) == "made of x"
    write_picture(tmp_path / name, Image.new("RGB", (9, 9)))
    assert read_comment(tmp_path / name) == ""
    (tmp_path / name).write_bytes(b"no picture")
    assert read_comment(tmp_path / name) == ""


def test_a_jpeg_of_too_many_pixels_along_a_side(tmp_path):
    write_picture(tmp_path / "wide.jpg", Image.new("L", (131_000, 8)))
    with Image.open(tmp_path / "wide.jpg") as picture:
        assert picture.size == (65_500, 4)


def test_labels_as_a_png(scores, tmp_path):
    labels = scores.argmax(0)
    labels[0, 0] = 9  # no class of the model
    files = make({"sem_seg": labels}).save(tmp_path)
    assert files == [tmp_path / "street.jpg", tmp_path / "labels" / "street.png"]
    labels[0, 0] = 255
    read = read_labels(str(files[1]))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels.numpy())


def test_labels_of_many_classes(tmp_path):
    many = output_metadata(Metadata(stuff_classes=[str(i) for i in range(300)]), 300, 300)
    labels = torch.arange(4800).view(SIZE) % 301
    make({"sem_seg": labels}, many).save(tmp_path)
    read = read_labels(str(tmp_path / "labels" / "street.png"))
    np.testing.assert_array_equal(read, np.where(labels == 300, 65535, labels))


def test_instances_as_coco_reads_them(instances, tmp_path):
    make({"instances": instances}).save(tmp_path)
    coco = COCO(str(tmp_path / "instances" / "street.json"))
    assert coco.loadImgs(1) == [{"id": 1, "file_name": "street.jpg", "height": 60, "width": 80}]
    assert [each["name"] for each in coco.loadCats([0, 1, 2])] == ["sky", "road", "car"]
    annotations = coco.loadAnns(coco.getAnnIds(catIds=[2]))
    for annotation, mask in zip(annotations, instances.pred_masks.numpy(), strict=False):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    assert [each["bbox"] for each in annotations] == [[5, 5, 45, 35], [20, 20, 13, 11]]
    assert [each["score"] for each in annotations] == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("metadata", [JOINT, SEPARATE])
def test_segments_as_coco_has_them(panoptic, tmp_path, metadata):
    ids, segments = panoptic
    if metadata is SEPARATE:
        segments[1]["category_id"] = 0
    make({"panoptic_seg": (ids, segments)}, metadata).save(tmp_path)
    colors = np.asarray(Image.open(tmp_path / "panoptic" / "street.png")).astype(int)
    np.testing.assert_array_equal(colors @ [1, 256, 256**2], ids.numpy())
    content = json.loads((tmp_path / "panoptic" / "street.json").read_text())
    assert content["annotations"] == [
        {
            "image_id": 1,
            "file_name": "street.png",
            "segments_info": [
                {"id": 1, "category_id": 0, "area": 2400, "iscrowd": 0},
                {"id": 70_000, "category_id": 2, "area": 1600, "iscrowd": 0},
            ],
        }
    ]
    assert [(each["name"], each["isthing"]) for each in content["categories"]] == [
        ("sky", 0),
        ("road", 0),
        ("car", 1),
    ]
