import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from PIL import Image

from sgr.data.mappers.plain import FileNamingMapper
from sgr.inference import BatchPredictor, choose_concepts, read_ahead
from sgr.load import load_model
from sgr.testing import SlidingWindowSegmentor, build_multi_scale_model
from tiny_detector import tiny_detector_config
from tiny_model import CHECKOUT, tiny_config


def saved(cfg, path):
    """The config with the weights of a random model."""
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


def predict_with(cfg):
    return BatchPredictor(*load_model(cfg))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*s, 3)).astype(np.uint8) for s in ((40, 60), (64, 50), (33, 90))]


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_an_image_becomes_what_an_evaluation_makes_of_it(tmp_path, images, format):
    cfg = tiny_config(tmp_path, INPUT__FORMAT=format, INPUT__MIN_SIZE_TEST=48)
    predictor = predict_with(saved(cfg, tmp_path / "model.pth"))
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    expected = DatasetMapper(cfg, is_train=False)(
        {"file_name": str(tmp_path / "image.png"), "height": 40, "width": 60}
    )
    result = predictor.prepare(images[0])
    assert torch.equal(result["image"], expected["image"])
    assert (result["height"], result["width"]) == (40, 60)
    assert result["image"].shape == (3, 48, 72)


def test_a_long_image_keeps_a_pixel_as_in_an_evaluation(tmp_path):
    cfg = tiny_config(tmp_path, INPUT__MIN_SIZE_TEST=48, INPUT__MAX_SIZE_TEST=96)
    predictor = predict_with(saved(cfg, tmp_path / "model.pth"))
    image = np.random.default_rng(0).integers(0, 256, (1, 5000, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "height": 1, "width": 5000}
    expected = FileNamingMapper(cfg, is_train=False)(record)["image"]
    assert expected.shape == (3, 1, 96)
    assert torch.equal(predictor.prepare(image)["image"], expected)


def segmentor(tmp_path, name):
    norms = {"MODEL__RESNETS__NORM": "BN", "MODEL__SEM_SEG_HEAD__NORM": "BN"}
    return tiny_config(tmp_path, CHECKOUT / "configs" / "shapes" / f"{name}_R50_sgr.yaml", **norms)


def check_regions(predictor, image, output):
    height, width = predictor.prepare(image)["image"].shape[-2:]
    regions = output["concept_regions"]
    stride = regions.stride
    assert regions.logits.shape[-2:] == (-(-height // stride), -(-width // stride))
    assert len(set(choose_concepts(output, 3).tolist())) == 3


@pytest.mark.parametrize("name", ["maskformer", "fcn"])
def test_segmentation_of_images_of_several_sizes(tmp_path, images, name):
    predictor = predict_with(saved(segmentor(tmp_path, name), tmp_path / "model.pth"))
    for image, output in zip(images, predictor(images)):
        assert output["sem_seg"].shape == (9, *image.shape[:2])
        check_regions(predictor, image, output)
    assert predictor.metadata.stuff_classes[4] == "disc"


def test_detection_in_images_of_several_sizes(tmp_path, images):
    cfg = tiny_detector_config(TEST__TOKENS__ENABLED=True)
    predictor = predict_with(saved(cfg, tmp_path / "model.pth"))
    for image, output in zip(images, predictor(images)):
        assert output["instances"].image_size == image.shape[:2]
        check_regions(predictor, image, output)


def test_things_have_the_models_numbers(tmp_path):
    """A mask classifier of Shapes numbers all nine classes together, a detector its five things."""
    mask_classifier = saved(segmentor(tmp_path, "maskformer"), tmp_path / "mask_classifier.pth")
    assert predict_with(mask_classifier).metadata.thing_classes[4] == "disc"
    detector = saved(tiny_detector_config(), tmp_path / "detector.pth")
    assert predict_with(detector).metadata.thing_classes[0] == "disc"


def test_unknown_formats_are_refused(tmp_path):
    cfg = tiny_config(tmp_path)
    cfg.INPUT.FORMAT = "L"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [120.0], [60.0]
    cfg = saved(cfg, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="INPUT.FORMAT must be 'RGB' or 'BGR', got 'L'"):
        predict_with(cfg)


def test_regions_of_a_model_without_are_refused(tmp_path):
    cfg = tiny_detector_config(MODEL__META_ARCHITECTURE="GeneralizedRCNN")
    cfg = saved(cfg, tmp_path / "model.pth")
    cfg.TEST.TOKENS.ENABLED = True
    with pytest.raises(ValueError, match="META_ARCHITECTURE to ConceptGeneralizedRCNN"):
        predict_with(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ConceptGeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS = "build_resnet_fpn_backbone", ""
    with pytest.raises(ValueError, match="has no concept regions: put a reasoning module"):
        BatchPredictor(*load_model(cfg, ""))


@pytest.mark.parametrize("name", ["maskformer", "fcn"])
@pytest.mark.parametrize("view", ["scales", "windows"])
def test_several_views_are_those_of_an_evaluation(tmp_path, images, name, view):
    cfg = segmentor(tmp_path, name)
    cfg.TEST.TOKENS.ENABLED = False
    cfg.INPUT.MIN_SIZE_TEST = 64
    if view == "scales":
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.SCALES = True, [0.75, 1.5]
        inputs = [{"image": torch.from_numpy(each.transpose(2, 0, 1).copy())} for each in images]
    else:
        cfg.TEST.SLIDING_WINDOW.ENABLED = True
        cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE = [64, 64], [32, 32]
    predictor = predict_with(saved(cfg, tmp_path / "model.pth"))
    if view == "scales":
        expected = build_multi_scale_model(cfg, predictor.model)(inputs)
    else:
        inputs = [predictor.prepare(each) for each in images]
        expected = SlidingWindowSegmentor(cfg, predictor.model)(inputs)
    for result, wanted, image in zip(predictor(images), expected, images):
        assert result["sem_seg"].shape == (9, *image.shape[:2])
        assert torch.equal(result["sem_seg"], wanted["sem_seg"])


def test_several_scales_of_a_detector(tmp_path, images):
    cfg = tiny_detector_config(
        TEST__TOKENS__ENABLED=False, TEST__AUG__ENABLED=True, TEST__AUG__MIN_SIZES=(48, 64)
    )
    for image, output in zip(images, predict_with(saved(cfg, tmp_path / "model.pth"))(images)):
        assert output["instances"].image_size == image.shape[:2]


@pytest.mark.parametrize("key", ["AUG", "SLIDING_WINDOW"])
def test_regions_of_several_views_are_refused(tmp_path, key):
    cfg = saved(segmentor(tmp_path, "fcn"), tmp_path / "model.pth")
    cfg.TEST[key].ENABLED = True
    with pytest.raises(ValueError, match=f"set TEST.{key}.ENABLED to False"):
        predict_with(cfg)


def test_reading_ahead():
    made = []

    def make():
        for index in range(4):
            made.append(index)
            yield index
        raise OSError("the end")

    items = read_ahead(make())
    assert next(items) == 0 and next(items) == 1
    with pytest.raises(OSError, match="the end"):
        assert list(items)
    assert made == [0, 1, 2, 3]
    assert list(read_ahead([])) == []
