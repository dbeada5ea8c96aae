"""TEST.CENTER_CROP_SIZE beside an evaluation of images that were cut out beforehand."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from sgr.engine import Trainer, evaluate
from sgr.evaluation import MeanIoUEvaluator, build_evaluator
from sgr.testing import plan_test
from tiny_detector import tiny_detector_config
from tiny_model import CONFIG, tiny_config

SIDE = 64
# Height and width of the images: both ways, larger and smaller than the square.
SIZES = [(72, 110), (120, 66), (64, 90), (50, 60), (81, 81)]
NUM_CLASSES = 9


def make_files(folder, index, height, width):
    """Paths of an image, its label map, and its panoptic picture of twelve segments."""
    rng = np.random.default_rng(index)
    rows, columns = np.mgrid[:height, :width]
    blocks = rows * 3 // height * 4 + columns * 4 // width
    labels = rng.integers(0, NUM_CLASSES, 12).astype(np.uint8)[blocks]
    labels[:4, :9] = 255
    image = np.stack([labels * 25, rows % 256, columns % 256], axis=-1).astype(np.uint8)
    image += rng.integers(0, 30, image.shape, dtype=np.uint8)
    segments = np.stack([blocks + 1, blocks * 0, blocks * 0], axis=-1).astype(np.uint8)
    paths = {}
    for name, array in (("image", image), ("labels", labels), ("segments", segments)):
        paths[name] = folder / f"{name}-{index}.png"
        Image.fromarray(array).save(paths[name])
    return paths


def cut_out(path, folder):
    """By Pillow: the shorter side resized to SIDE, and the middle; images smoothly."""
    picture = Image.open(path)
    factor = SIDE / min(picture.size)
    width, height = (int(factor * each + 0.5) for each in picture.size)
    smooth = path.name.startswith("image")
    resized = picture.resize((width, height), Image.BILINEAR if smooth else Image.NEAREST)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    resized.crop((left, top, left + SIDE, top + SIDE)).save(folder / path.name)
    return folder / path.name


@pytest.fixture
def datasets(tmp_path):
    """Names of a dataset of whole images, and of one of the squares in them."""
    folders = {name: tmp_path / name for name in ("whole", "squares")}
    for folder in folders.values():
        folder.mkdir()
    records = {name: [] for name in folders}
    for index, size in enumerate(SIZES):
        whole = make_files(folders["whole"], index, *size)
        squares = {name: cut_out(path, folders["squares"]) for name, path in whole.items()}
        for name, paths in (("whole", whole), ("squares", squares)):
            seen = set(np.unique(np.asarray(Image.open(paths["segments"]))[..., 0]).tolist())
            records[name].append(
                {
                    "file_name": str(paths["image"]),
                    "sem_seg_file_name": str(paths["labels"]),
                    "pan_seg_file_name": str(paths["segments"]),
                    "segments_info": [
                        {"id": id, "category_id": id % NUM_CLASSES, "isthing": id % 3 > 0}
                        for id in range(1, 13)
                        if id in seen
                    ],
                }
            )
    names = {name: f"{name}_{tmp_path.name}" for name in folders}
    for name, registered in names.items():
        DatasetCatalog.register(registered, lambda name=name: records[name])
        MetadataCatalog.get(registered).set(
            evaluator_type="sem_seg",
            ignore_label=255,
            stuff_classes=[str(each) for each in range(NUM_CLASSES)],
        )
    yield names["whole"], names["squares"]
    for registered in names.values():
        DatasetCatalog.pop(registered)
        MetadataCatalog.pop(registered)


def save_weights(cfg, path):
    """Of a model that is unsure of no pixel, so that its errors have a pattern."""
    model = Trainer.build_model(cfg)
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.weight.shape[0] in (9, 10):
            nn.init.normal_(part.weight, std=0.5)
    torch.save({"model": model.state_dict()}, path)


WINDOWS = {
    "TEST__SLIDING_WINDOW__ENABLED": True,
    "TEST__SLIDING_WINDOW__SIZE": [48, 48],
    "TEST__SLIDING_WINDOW__STRIDE": [20, 30],
}
SCALES = {"TEST__AUG__ENABLED": True, "TEST__AUG__SCALES": "[0.75, 1.5]"}


@pytest.mark.parametrize(
    "model, views",
    [
        ("maskformer_R50_sgr", SCALES),
        ("maskformer_R50_sgr", WINDOWS),
        ("maskformer_R50_sgr", {**SCALES, **WINDOWS}),
        ("fcn_R50_sgr", SCALES),
    ],
)
def test_results_are_those_of_the_squares(datasets, tmp_path, model, views):
    whole, squares = datasets
    common = {
        "config": CONFIG.with_name(f"{model}.yaml"),
        "DATASETS__TRAIN": "()",
        **views,
        "MODEL__WEIGHTS": tmp_path / "weights.pth",
    }
    # Of no effect: the sizes of the plain test.
    sizes = {"INPUT__MIN_SIZE_TEST": 40, "INPUT__MAX_SIZE_TEST": 41}
    cut = tiny_config(
        tmp_path / "cut",
        **common,
        **sizes,
        DATASETS__TEST=f"('{whole}',)",
        TEST__CENTER_CROP_SIZE=SIDE,
    )
    plain = tiny_config(
        tmp_path / "plain",
        **common,
        DATASETS__TEST=f"('{squares}',)",
        INPUT__MIN_SIZE_TEST=SIDE,
        INPUT__MAX_SIZE_TEST=SIDE,
    )
    save_weights(plain, tmp_path / "weights.pth")
    expected = evaluate(plain)
    actual = evaluate(cut)
    blocks = {"sem_seg"}
    blocks |= {"sem_seg_TTA"} if "TEST__AUG__ENABLED" in views else set()
    if views is SCALES:
        blocks |= {"tokens", "queries"} if model.startswith("mask") else {"tokens"}
        assert {"S_C", "D_C", "S_I", "D_I"} <= actual["tokens"].keys()
        assert actual["tokens"]["images_I"] == len(SIZES)
    assert actual.keys() == expected.keys() == blocks
    for block in blocks:
        assert actual[block] == pytest.approx(expected[block], nan_ok=True), block
    assert 0 < actual["sem_seg"]["mIoU"] < 100


def test_square_images_of_the_size_give_the_same_results(tiny_shapes, tmp_path):
    results = []
    for side in (0, 96):
        torch.manual_seed(0)
        cfg = tiny_config(tmp_path, TEST__CENTER_CROP_SIZE=side)
        results.append(Trainer.test(cfg, Trainer.build_model(cfg)))
    assert {"S_C", "S_I"} <= results[0]["tokens"].keys()
    assert results[0].keys() == results[1].keys()
    for block, values in results[0].items():
        assert results[1][block] == pytest.approx(values, nan_ok=True, rel=1e-12)


def refuse(*args, **kwargs):
    raise AssertionError("data or weights are loaded")


@pytest.fixture
def panoptic(tmp_path):
    name = f"panoptic_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(evaluator_type="coco_panoptic_seg")
    yield name
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)


class TestErrors:
    @pytest.mark.parametrize("run", [Trainer, evaluate])
    @pytest.mark.parametrize(
        "on, measures, keys",
        [
            (["PANOPTIC"], "panoptic quality", "PANOPTIC_ON"),
            (["INSTANCE"], "AP", "INSTANCE_ON"),
            (["PANOPTIC", "INSTANCE"], "panoptic quality and AP", "PANOPTIC_ON and INSTANCE_ON"),
        ],
    )
    def test_segments(self, panoptic, tmp_path, monkeypatch, run, on, measures, keys):
        monkeypatch.setattr(Trainer, "build_train_loader", refuse)
        monkeypatch.setattr("sgr.engine.trainer.SafeCheckpointer", refuse)
        cfg = tiny_config(
            tmp_path,
            DATASETS__TEST=f"('{panoptic}',)",
            TEST__CENTER_CROP_SIZE=64,
            **{f"MODEL__MASK_FORMER__TEST__{each}_ON": True for each in on},
        )
        match = (
            f"with TEST.CENTER_CROP_SIZE 64 only mIoU .* and not {measures} on {panoptic}; "
            f"set TEST.CENTER_CROP_SIZE to 0, or {keys} of MODEL.MASK_FORMER.TEST to False"
        )
        with pytest.raises(ValueError, match=match):
            run(cfg)
        with pytest.raises(ValueError, match=match):
            build_evaluator(cfg, panoptic)
        with pytest.raises(ValueError, match=match):
            Trainer.test(cfg, nn.Identity())
        # Without them, there is nothing to object to.
        for each in on:
            cfg.MODEL.MASK_FORMER.TEST[f"{each}_ON"] = False
        build_evaluator(cfg, panoptic)

    @pytest.mark.parametrize("run", [Trainer, evaluate])
    def test_detectors(self, tiny_shapes, tmp_path, monkeypatch, run):
        monkeypatch.setattr(Trainer, "build_train_loader", refuse)
        monkeypatch.setattr("sgr.engine.trainer.SafeCheckpointer", refuse)
        cfg = tiny_detector_config(OUTPUT_DIR=tmp_path, TEST__CENTER_CROP_SIZE=64)
        match = "and not AP on shapes_instance_val; set TEST.CENTER_CROP_SIZE to 0$"
        with pytest.raises(ValueError, match=match):
            run(cfg)
        with pytest.raises(ValueError, match=match):
            Trainer.test_with_TTA(cfg, Trainer.build_model(cfg))

    @pytest.mark.parametrize("run", [Trainer, evaluate])
    def test_negative(self, tiny_shapes, tmp_path, run):
        cfg = tiny_config(tmp_path)
        cfg.TEST.CENTER_CROP_SIZE = -3
        with pytest.raises(ValueError, match="TEST.CENTER_CROP_SIZE must be .*, not -3"):
            run(cfg)

    def test_windows_leave_nothing_but_labels_to_measure(self, panoptic, tmp_path):
        cfg = tiny_config(
            tmp_path,
            TEST__CENTER_CROP_SIZE=64,
            **WINDOWS,
            DATASETS__TEST=f"('{panoptic}',)",
            MODEL__MASK_FORMER__TEST__PANOPTIC_ON=True,
        )
        MetadataCatalog.get(panoptic).stuff_classes = list("abcdefghi")
        (evaluator,) = plan_test(cfg, Trainer.build_model(cfg)).evaluators
        assert isinstance(evaluator, MeanIoUEvaluator)

    def test_tokens_of_a_semantic_model_on_instances(self, tiny_shapes, tmp_path):
        """No AP is measured there, so squares do."""
        cfg = tiny_config(
            tmp_path, TEST__CENTER_CROP_SIZE=48, DATASETS__TEST="('shapes_instance_val',)"
        )
        results = Trainer.test(cfg, Trainer.build_model(cfg))
        assert results["tokens"]["images_I"] == 5
