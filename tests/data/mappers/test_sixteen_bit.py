"""Images of 16 bits in training, in testing and in the check of a dataset: one reader, one key."""

import numpy as np
import pytest
from PIL import Image

from sgr.data.mappers import build_mapper
from sgr.dataset_check.options import CheckOptions
from sgr.dataset_check.record import check_record
from sgr.engine import load_config
from tiny_model import CONFIG

OPTIONS = ["INPUT.COLOR_AUG_SSD", "False", "INPUT.RANDOM_FLIP", "none"]


@pytest.fixture
def record(tmp_path):
    values = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "b.png")
    files = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "b.png")}
    return {**files, "height": 40, "width": 50}


def mappers(*options):
    cfg = load_config(str(CONFIG), [*OPTIONS, *options])
    square = load_config(str(CONFIG), [*OPTIONS, *options, "TEST.CENTER_CROP_SIZE", "32"])
    default = load_config(
        str(CONFIG), [*OPTIONS, *options, "INPUT.DATASET_MAPPER_NAME", "detectron2_default"]
    )
    yield build_mapper(cfg)
    yield build_mapper(default)
    yield build_mapper(cfg, is_train=False)
    yield build_mapper(square, is_train=False)


def test_refused_unless_asked(record):
    for mapper in mappers():
        with pytest.raises(OSError, match="a.png .*16 bits"):
            mapper(record)
    options = CheckOptions(truth=("sem_seg_file_name",), class_names=("a", "b"))
    [fault] = check_record(record, options).faults
    assert "INPUT.SIXTEEN_BIT" in fault.message


@pytest.mark.parametrize("sixteen_bit", ["full_range", "percentile"])
def test_the_whole_range_of_grey(record, sixteen_bit):
    """Pillow alone makes nearly all of it white."""
    for mapper in mappers("INPUT.SIXTEEN_BIT", sixteen_bit):
        image = mapper(record)["image"].float()
        assert image.max() - image.min() > 100 and 60 < image.mean() < 200
    options = CheckOptions(
        truth=("sem_seg_file_name",), class_names=("a", "b"), sixteen_bit=sixteen_bit
    )
    assert not check_record(record, options).faults
