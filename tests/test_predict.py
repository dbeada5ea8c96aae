"""From images of all forms to results."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import sgr
from sgr.inference import BatchPredictor
from tiny_detector import tiny_detector_config
from tiny_model import CHECKOUT, tiny_config


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A tiny MaskFormer with random weights, and its config."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    cfg = tiny_config(root, INPUT__MIN_SIZE_TEST=48, INPUT__FORMAT="BGR")
    torch.save({"model": build_model(cfg).state_dict()}, root / "model.pth")
    return sgr.load_model(cfg, root / "model.pth")


@pytest.fixture(scope="module")
def predictor(loaded):
    return sgr.Predictor(*loaded)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def test_all_forms_of_an_image_give_the_same(loaded, predictor, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "street.png")
    expected = BatchPredictor(*loaded)([image])[0]
    forms = [image, Image.fromarray(image), tmp_path / "street.png", str(tmp_path / "street.png")]
    results = [predictor(form) for form in forms]
    results.append(predictor(Image.open(tmp_path / "street.png")))
    for result in results:
        np.testing.assert_array_equal(result.image, image)
        np.testing.assert_array_equal(result.scores, expected["sem_seg"].numpy())
        regions = expected["concept_regions"].probabilities[0].numpy()
        np.testing.assert_array_equal(result.regions, regions)
    assert [result.name for result in results] == ["image", "image", *3 * ["street.png"]]


def test_other_modes_and_turned_images(predictor, image):
    grey = image[..., 0]
    for form in (grey, Image.fromarray(grey)):
        np.testing.assert_array_equal(predictor(form).image, np.stack([grey] * 3, axis=-1))
    turned = Image.fromarray(image)
    turned.getexif()[0x0112] = 6  # to the right
    assert predictor(turned).image.shape == (60, 40, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_several_images_in_their_order(predictor, image, batch_size):
    images = [image, image[:, ::-1], image[::-1], image[:, :, ::-1], image]
    results = predictor(images, batch_size=batch_size)
    assert [result.name for result in results] == [f"image_{index}" for index in range(5)]
    for given, result in zip(images, results):
        np.testing.assert_array_equal(result.image, given)
        np.testing.assert_allclose(result.scores, predictor(given).scores, atol=1e-5)


def test_a_folder_and_a_pattern_with_a_progress_bar(predictor, image, tmp_path, capsys):
    for name in ("b.png", "a.jpg", "c.txt"):
        (tmp_path / name).touch()
    for name in ("b.png", "a.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    assert [result.name for result in predictor(tmp_path)] == ["a.jpg", "b.png"]
    assert "2/2" in capsys.readouterr().err
    assert [result.name for result in predictor(str(tmp_path / "*.png"))] == ["b.png"]
    next(predictor.stream(tmp_path, progress=False))
    assert capsys.readouterr().err.count("2/2") == 0


def test_files_of_equal_names_do_not_overwrite_one_another(predictor, image, tmp_path):
    photos = [tmp_path / name for name in ("x/1.jpg", "y/1.jpg", "y/1.png")]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(photo)
    out = tmp_path / "out"
    results = predictor([*photos[:1], *map(str, photos[1:])])
    assert [result.name for result in results] == ["1.jpg", "1.jpg", "1.png"]
    files = [file.relative_to(out) for result in results for file in result.save(out)]
    stems = ["x/1", "y/1", "y/1_2"]
    assert [str(file) for file in files[1::2]] == [f"labels/{stem}.png" for stem in stems]
    assert [str(file) for file in files[::2]] == ["x/1.jpg", "y/1.jpg", "y/1_2.png"]
    assert str(predictor(photos[1]).save(out / "one")[0]) == str(out / "one" / "1.jpg")


def test_an_image_is_not_overwritten_by_its_result(predictor, image, tmp_path):
    photo = tmp_path / "street.png"
    Image.fromarray(image).save(photo)
    before = photo.read_bytes()
    for form in (photo, str(photo), Image.open(photo)):
        with pytest.raises(ValueError, match="street.png would overwrite the input"):
            predictor(form).save(tmp_path)
    assert photo.read_bytes() == before and list(tmp_path.iterdir()) == [photo]


def test_a_stream_takes_what_is_made_on_the_way(predictor, image):
    made = []

    def frames():
        for index in range(50):
            made.append(index)
            yield image

    next(predictor.stream(frames(), progress=False))
    assert len(made) <= 3


def test_errors_are_raised_or_told(predictor, image, tmp_path):
    images = [image, tmp_path / "none.png", image.astype(float), image]
    with pytest.raises(FileNotFoundError, match="none.png"):
        predictor(images)
    told = []
    results = list(predictor.stream(images, on_error=lambda *error: told.append(error)))
    assert len(results) == 2 and [item for item, _ in told] == images[1:3]
    assert "uint8, from 0 to 255, not of float64" in str(told[1][1])


@pytest.mark.parametrize(
    "given, error, message",
    [
        ("none.png", FileNotFoundError, "none.png"),
        ("*.none", FileNotFoundError, "matches the pattern"),
        (7, TypeError, "not a int"),
        ([7], TypeError, "not a int"),
        (np.zeros((3, 40, 60), np.uint8), ValueError, r"in grey, not \(3, 40, 60\)"),
        (np.zeros((40, 60, 4), np.uint8), ValueError, r"in grey, not \(40, 60, 4\)"),
        (np.zeros((0, 60, 3), np.uint8), ValueError, r"not \(0, 60, 3\)"),
        (Image.new("F", (9, 9)), ValueError, "mode F"),
        (Image.new("I;16", (9, 9)), ValueError, "mode I;16"),
    ],
)
def test_what_is_no_image(predictor, given, error, message):
    with pytest.raises(error, match=message):
        predictor(given)


def test_a_batch_of_no_image(predictor, image):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predictor([image], batch_size=0)
    assert predictor([]) == []


@pytest.mark.parametrize("key", ["TEST.AUG.ENABLED", "TEST.SLIDING_WINDOW.ENABLED"])
def test_regions_are_none_where_there_are_none(loaded, image, key):
    cfg = loaded[1].clone()
    cfg.defrost()
    cfg.merge_from_list([key, True, "TEST.AUG.SCALES", [1.0]])
    result = sgr.Predictor(loaded[0], cfg)(image)
    assert result.regions is None and result.labels.shape == (40, 60)
    assert sgr.Predictor(*loaded)(image).regions is not None  # the model is as before


def test_logits_become_probabilities(tmp_path, image):
    norms = {"MODEL__RESNETS__NORM": "BN", "MODEL__SEM_SEG_HEAD__NORM": "BN"}
    config = CHECKOUT / "configs" / "shapes" / "fcn_R50_sgr.yaml"
    for scales in (False, True):
        cfg = tiny_config(tmp_path, config, TEST__AUG__ENABLED=scales, **norms)
        scores = sgr.Predictor(*sgr.load_model(cfg, ""))(image).scores
        np.testing.assert_allclose(scores.sum(axis=0), 1, rtol=1e-5)


def test_the_threshold_of_instances(tmp_path, image):
    model, cfg = sgr.load_model(tiny_detector_config(), "")
    with torch.no_grad():  # all classes have the same score
        for parameter in model.roi_heads.box_predictor.cls_score.parameters():
            parameter.zero_()
    assert len(sgr.Predictor(model, cfg, score_threshold=0)(image).instances)
    assert len(sgr.Predictor(model, cfg, score_threshold=0.9)(image).instances) == 0
    with pytest.raises(ValueError, match="score_threshold must be from 0 to 1, got 50"):
        sgr.Predictor(model, cfg, score_threshold=50)
