"""Forms in which images and label maps come, on the whole way from a record to mapper and mIoU."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.data.mappers import SemanticConceptMapper
from sgr.evaluation.sem_seg_evaluator import MeanIoUEvaluator

LABELS = np.arange(12, dtype=np.uint8).repeat(4).reshape(6, 8) % 5
LABELS[0, :3] = 255
# Blocks of one colour, which survive a JPEG file.
GREY = np.full((6, 8), 77, np.uint8)


def save_8_bit(labels, file):
    Image.fromarray(labels).save(file)


def save_palette(labels, file):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.flatten().tolist())
    image.putpalette([(7 * value + 3) % 256 for value in range(768)])
    image.save(file)


def save_palette_with_transparency(labels, file):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.flatten().tolist())
    image.putpalette([(11 * value) % 256 for value in range(768)])
    image.save(file, transparency=0)


def save_small_palette(labels, file):
    """Four bits per pixel; 255 cannot be in it."""
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.flatten().tolist())
    image.putpalette([value % 256 for value in range(48)])
    image.save(file, bits=4)


def save_16_bit(labels, file):
    Image.fromarray(labels.astype(np.uint16)).save(file)


def save_1_bit(labels, file):
    Image.fromarray(labels.astype(bool)).save(file)


FORMS = {
    save_8_bit: LABELS,
    save_palette: LABELS,
    save_palette_with_transparency: LABELS,
    save_small_palette: LABELS % 5,
    save_16_bit: LABELS,
    save_1_bit: LABELS % 2,
}


def mapped(image_file, label_file, **options):
    options = {"num_classes": 5, "ignore_label": 255, "image_format": "RGB", **options}
    mapper = SemanticConceptMapper(augmentations=[], **options)
    return mapper({"file_name": str(image_file), "sem_seg_file_name": str(label_file)})


@pytest.fixture
def image_file(tmp_path):
    file = tmp_path / "image.jpg"
    Image.fromarray(np.stack([GREY] * 3, -1)).save(file)
    return file


@pytest.mark.parametrize("save", FORMS, ids=lambda save: save.__name__)
def test_forms_of_label_maps(save, image_file, tmp_path):
    labels = FORMS[save]
    save(labels, tmp_path / "labels.png")
    record = mapped(image_file, tmp_path / "labels.png")
    np.testing.assert_array_equal(record["sem_seg"].numpy(), labels)

    name = f"traps_{save.__name__}"
    DatasetCatalog.register(
        name,
        lambda: [{"file_name": str(image_file), "sem_seg_file_name": str(tmp_path / "labels.png")}],
    )
    MetadataCatalog.get(name).set(stuff_classes=list("abcde"), ignore_label=255)
    try:
        evaluator = MeanIoUEvaluator(name)
        evaluator.reset()
        predicted = torch.from_numpy(np.where(labels == 255, 3, labels).astype(np.int64))
        evaluator.process([{"file_name": str(image_file)}], [{"sem_seg": predicted}])
        results = evaluator.evaluate()["sem_seg"]
        assert results["mIoU"] == 100 and results["pACC"] == 100
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_labels_past_a_byte(image_file, tmp_path):
    labels = LABELS.astype(np.uint16) + 600
    labels[0, 0] = 65535
    Image.fromarray(labels).save(tmp_path / "labels.png")
    ignored = {"ignore_label": 65535, "ignore_value": 65535}
    record = mapped(image_file, tmp_path / "labels.png", num_classes=900, **ignored)
    np.testing.assert_array_equal(record["sem_seg"].numpy(), labels.astype(int))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_label_maps_in_colours_are_refused(mode, image_file, tmp_path):
    Image.new(mode, (8, 6)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels\.png must have one channel"):
        mapped(image_file, tmp_path / "labels.png")


@pytest.mark.parametrize(
    "mode, suffix",
    [("L", ".jpg"), ("RGB", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("LA", ".png"),
     ("RGBA", ".png"), ("1", ".png")],
)  # fmt: skip
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_forms_of_images(mode, suffix, image_format, tmp_path):
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:, :] = (255, 255, 255) if mode == "1" else (200, 100, 50)
    image = Image.fromarray(picture).convert(mode)
    file = tmp_path / f"image{suffix}"
    image.save(file)
    assert Image.open(file).mode == mode
    save_8_bit(LABELS, tmp_path / "labels.png")
    record = mapped(file, tmp_path / "labels.png", image_format=image_format)
    assert record["image"].dtype == torch.uint8 and record["image"].shape == (3, 6, 8)
    expected = np.asarray(image.convert("RGB"))[0, 0].astype(int)
    if image_format == "BGR":
        expected = expected[::-1]
    found = record["image"][:, 3, 4].numpy().astype(int)
    # JPEG and the palette round.
    np.testing.assert_allclose(found, expected, atol=6)
    if mode not in ("L", "LA", "P", "1"):
        channel = {"RGB": [200, 100, 50], "BGR": [50, 100, 200]}[image_format]
        np.testing.assert_allclose(found, channel, atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    """A picture is seen as its EXIF data say, and its label map, which has none, as it is."""
    side = np.zeros((16, 32), np.uint8)
    side[:8, :16] = 1  # the upper left quarter, seen upright
    picture = np.where(side[..., None], 240, 10).repeat(3, -1).astype(np.uint8)
    # What is stored, so that the orientation turns it upright.
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        tmp_path / "image.jpg", exif=exif, quality=95
    )
    save_8_bit(side, tmp_path / "labels.png")
    record = mapped(tmp_path / "image.jpg", tmp_path / "labels.png")
    bright = record["image"][0].numpy() > 128
    np.testing.assert_array_equal(bright, record["sem_seg"].numpy() == 1)
    assert (record["height"], record["width"]) == (16, 32)

    if orientation > 4:  # the sides change places, so a label map of the stored pixels is noticed
        save_8_bit(np.zeros((32, 16), np.uint8), tmp_path / "labels.png")
        expected = "is 32 x 16 pixels, but its label map .* is 16 x 32; the orientation in its EXIF"
        with pytest.raises(ValueError, match=expected):
            mapped(tmp_path / "image.jpg", tmp_path / "labels.png")
