"""The test mapper that leaves a square of each image."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.data.mappers import build_mapper
from sgr.data.truth.records import apply_test_transform
from sgr.engine import load_config

SIDE = 24


def config(side=SIDE, **more):
    options = {"TEST.CENTER_CROP_SIZE": side, "INPUT.FORMAT": "RGB", **more}
    return load_config("", [str(each) for pair in options.items() for each in pair])


def make_record(folder, height, width):
    """An image of blocks, and a label map of the same."""
    rows, columns = np.mgrid[:height, :width]
    labels = ((rows * 9 // height + columns * 7 // width) % 6).astype(np.uint8)
    Image.fromarray(np.stack([labels * 40] * 3, axis=-1)).save(folder / "image.png")
    Image.fromarray(labels).save(folder / "labels.png")
    return {
        "file_name": str(folder / "image.png"),
        "sem_seg_file_name": str(folder / "labels.png"),
        "image_id": 5,
    }


def literal(path, side, resample):
    """By Pillow: the shorter side resized, and the middle of the longer one, its odd pixel last."""
    picture = Image.open(path)
    factor = side / min(picture.size)
    width, height = (int(factor * each + 0.5) for each in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), resample)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


SIZES = [(48, 100), (100, 48), (60, 60), (24, 24), (24, 31), (10, 17), (90, 91)]


@pytest.mark.parametrize("height, width", SIZES)
def test_image_and_labels(tmp_path, height, width):
    record = make_record(tmp_path, height, width)
    before = dict(record)
    out = build_mapper(config(), is_train=False)(record)
    assert record == before
    assert out["height"] == out["width"] == SIDE and out["image_id"] == 5
    assert "sem_seg" not in out and "sem_seg_file_name" not in out
    assert out["image"].shape == (3, SIDE, SIDE) and out["image"].dtype == torch.uint8
    expected = literal(record["file_name"], SIDE, Image.BILINEAR)
    np.testing.assert_array_equal(out["image"].permute(1, 2, 0).numpy(), expected)
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    np.testing.assert_array_equal(
        apply_test_transform(out, labels), literal(record["sem_seg_file_name"], SIDE, Image.NEAREST)
    )


def test_labels_lie_over_the_image(tmp_path):
    record = make_record(tmp_path, 480, 640)
    out = build_mapper(config(160), is_train=False)(record)
    labels = apply_test_transform(out, np.asarray(Image.open(record["sem_seg_file_name"])))
    flat = np.ones(labels.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            flat &= np.roll(labels, step, axis) == labels
    flat[0] = flat[-1] = flat[:, 0] = flat[:, -1] = False
    assert flat.mean() > 0.5
    assert (out["image"][1].numpy()[flat] == labels[flat] * 40).all()


def test_nothing_is_drawn_and_other_keys_have_no_effect(tmp_path):
    record = make_record(tmp_path, 48, 300)
    cfg = config(**{"INPUT.MIN_SIZE_TEST": 10, "INPUT.MAX_SIZE_TEST": 12})
    images = []
    for seed, each in ((0, config()), (1, config()), (2, cfg)):
        seed_all_rng(seed)
        images.append(build_mapper(each, is_train=False)(record)["image"])
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_an_image_of_the_size_stays_as_it_is(tmp_path):
    record = make_record(tmp_path, SIDE, SIDE)
    squared = build_mapper(config(), is_train=False)(record)
    plain = build_mapper(config(0, **{"INPUT.MIN_SIZE_TEST": SIDE}), is_train=False)(record)
    transform = squared.pop("ground_truth_transform")
    assert plain.keys() == squared.keys()
    assert torch.equal(plain["image"], squared["image"])
    labels = np.random.default_rng(0).integers(0, 9, (SIDE, SIDE))
    moved = apply_test_transform({"ground_truth_transform": transform}, labels)
    np.testing.assert_array_equal(moved, labels)


def test_it_comes_out_of_a_worker(tmp_path):
    record = make_record(tmp_path, 30, 70)
    out = build_mapper(config(), is_train=False)(record)
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    again = pickle.loads(pickle.dumps(out))
    np.testing.assert_array_equal(
        apply_test_transform(again, labels), apply_test_transform(out, labels)
    )


def test_damaged_images_are_named(tmp_path):
    record = make_record(tmp_path, 30, 70)
    (tmp_path / "image.png").write_bytes(b"hello")
    with pytest.raises(OSError, match="image.png cannot be read"):
        build_mapper(config(), is_train=False)(record)


def test_zero_and_negative(tmp_path):
    mapper = build_mapper(config(0, **{"INPUT.MIN_SIZE_TEST": 10}), is_train=False)
    assert isinstance(mapper, DatasetMapper)
    out = mapper(make_record(tmp_path, 20, 30))
    assert out["image"].shape == (3, 10, 15) and (out["height"], out["width"]) == (20, 30)
    assert "ground_truth_transform" not in out and "sem_seg" not in out
    cfg = config(0, **{"INPUT.DATASET_MAPPER_NAME": "detectron2_default"})
    cfg.TEST.CENTER_CROP_SIZE = -1
    with pytest.raises(ValueError, match="TEST.CENTER_CROP_SIZE must be .*, not -1"):
        build_mapper(cfg, is_train=False)
    # A training, whose mapper this is, does not mind: the key is of the test.
    build_mapper(cfg)
