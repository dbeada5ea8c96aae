"""Multi-scale testing beside a loop that keeps every map."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import DatasetMapperTTA, build_model
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sgr import add_sgr_config
from sgr.engine import Trainer, evaluate
from sgr.testing import (
    MultiScaleSemanticSegmentor,
    SlidingWindowSegmentor,
    build_multi_scale_model,
    plan_multi_scale_test,
    plan_tests,
)
from sgr.testing.multi_scale import describe_views
from tiny_detector import tiny_detector_config
from tiny_model import CONFIG, tiny_config

SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
FRAMEWORKS = {
    "fcn_R50_sgr": "softmax",
    "deeplabv3_R50_sgr": "softmax",
    "upernet_R50_sgr": "softmax",
    "maskformer_R50_sgr": "as they are",
    "mask2former_R50": "as they are",
}


def framework(tmp_path, name, **more):
    """Config and model of a framework, with random weights."""
    cfg = tiny_config(
        tmp_path,
        CONFIG.with_name(f"{name}.yaml"),
        MODEL__SEM_SEG_HEAD__ASPP_CHANNELS=32,
        MODEL__SEM_SEG_HEAD__AUX_CHANNELS=16,
        MODEL__MASK_FORMER__DEC_LAYERS=3,
        INPUT__MIN_SIZE_TEST=64,
        **more,
    )
    model = build_model(cfg).eval()
    for part in model.modules():
        # Classifiers start near zero: too close to equal probabilities to see anything.
        if isinstance(part, nn.Conv2d) and part.out_channels == 9:
            nn.init.normal_(part.weight, std=0.3)
    return cfg, model


def picture(height, width):
    """A smooth picture, (3, height, width) uint8."""
    coarse = torch.rand(1, 3, 5, 7) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 255).byte()


def literal(model, views, *, size, softmax):
    """The mean of the maps of views: triples of an image, whether it is flipped, and a model."""
    maps = []
    for image, flipped in views:
        inputs = {"image": image, "height": size[0], "width": size[1]}
        scores = model([inputs])[0]["sem_seg"]
        scores = scores.softmax(0) if softmax else scores
        maps.append(scores.flip(2) if flipped else scores)
    return torch.stack(maps).mean(0)


def literal_views(image, min_size, max_size, scales):
    for scale in scales:
        short, longest = (int(scale * side + 0.5) for side in (min_size, max_size))
        for flip in (False, True):
            data = T.AugInput(image.permute(1, 2, 0).numpy())
            T.AugmentationList([T.ResizeShortestEdge(short, longest), T.RandomFlip(float(flip))])(
                data
            )
            array = np.ascontiguousarray(data.image.transpose(2, 0, 1))
            yield torch.from_numpy(array), flip


class Linear(nn.Module):
    """Scores that are a linear map of the pixels, resized last, as a MaskFormer would."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.eval()

    def forward(self, inputs):
        outputs = []
        for each in inputs:
            image = each["image"].float()
            self.seen.append(tuple(image.shape[-2:]))
            size = each.get("height", image.shape[1]), each.get("width", image.shape[2])
            scores = torch.cat([image, -image]) / 255
            scores = F.interpolate(scores[None], size, mode="bilinear")[0]
            outputs.append({"sem_seg": scores})
        return outputs


def around(model, **options):
    options = {"logits": False, "scales": SCALES, **options}
    return MultiScaleSemanticSegmentor(model, **options)


class TestMean:
    @pytest.mark.parametrize("name", FRAMEWORKS)
    def test_equals_a_loop_that_keeps_all_maps(self, tmp_path, name):
        cfg, model = framework(tmp_path, name, INPUT__MAX_SIZE_TEST=80)
        image = picture(96, 150)
        for size in [(96, 150), (40, 60)]:
            views = literal_views(image, 64, 80, SCALES)
            with torch.no_grad():
                expected = literal(model, views, size=size, softmax=FRAMEWORKS[name] == "softmax")
            inputs = {"image": image, "height": size[0], "width": size[1]}
            (output,) = build_multi_scale_model(cfg, model)([inputs])
            assert list(output) == ["sem_seg"]
            assert output["sem_seg"].shape == (9, *size)
            torch.testing.assert_close(output["sem_seg"], expected, atol=1e-5, rtol=1e-5)
            # Where a difference could be seen.
            assert expected.std(dim=(1, 2)).max() > 1e-3

    def test_min_sizes_are_those_of_detectron2(self, tmp_path):
        cfg, model = framework(
            tmp_path,
            "maskformer_R50_sgr",
            TEST__AUG__SCALES="[]",
            TEST__AUG__MIN_SIZES="(40, 96)",
            TEST__AUG__MAX_SIZE=100,
        )
        inputs = {"image": picture(64, 90), "height": 64, "width": 90}
        views = [
            (each["image"], any(isinstance(t, T.HFlipTransform) for t in each["transforms"]))
            for each in DatasetMapperTTA(cfg)(inputs)
        ]
        assert len(views) == 4
        with torch.no_grad():
            expected = literal(model, views, size=(64, 90), softmax=False)
        actual = build_multi_scale_model(cfg, model)([inputs])[0]["sem_seg"]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["fcn_R50", "maskformer_R50"])
    def test_one_scale_is_the_model(self, tmp_path, name):
        cfg, model = framework(tmp_path, name, TEST__AUG__SCALES="[1.0]", TEST__AUG__FLIP=False)
        image = picture(64, 70)
        with torch.no_grad():
            scores = model([{"image": image, "height": 90, "width": 99}])[0]["sem_seg"]
        expected = scores.softmax(0) if name == "fcn_R50" else scores
        actual = build_multi_scale_model(cfg, model)([{"image": image, "height": 90, "width": 99}])[
            0
        ]["sem_seg"]
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)

    def test_masks_may_be_resized_before_their_sum(self, tmp_path):
        cfg, model = framework(
            tmp_path,
            "maskformer_R50",
            MODEL__MASK_FORMER__TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=True,
            TEST__AUG__SCALES="[0.5, 1.0]",
        )
        image = picture(150, 96)
        with torch.no_grad():
            views = literal_views(image, 64, cfg.INPUT.MAX_SIZE_TEST, [0.5, 1.0])
            expected = literal(model, views, size=(150, 96), softmax=False)
        actual = build_multi_scale_model(cfg, model)([{"image": image}])[0]["sem_seg"]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["fcn_R50_sgr", "mask2former_R50"])
    def test_flipped_image_flipped_result(self, tmp_path, name):
        cfg, model = framework(tmp_path, name, TEST__AUG__SCALES="[1.0, 1.5]")
        model = build_multi_scale_model(cfg, model)
        image = picture(64, 96)  # where the network pads nothing, and the flips are exact
        plain, flipped = model([{"image": image}, {"image": image.flip(2)}])
        torch.testing.assert_close(
            flipped["sem_seg"].flip(2), plain["sem_seg"], atol=1e-5, rtol=1e-5
        )

    def test_images_of_several_sizes_in_a_batch(self, tmp_path):
        cfg, model = framework(tmp_path, "fcn_R50", TEST__AUG__SCALES="[0.5, 1.0]")
        model = build_multi_scale_model(cfg, model)
        inputs = [
            {"image": picture(50, 70)},
            {"image": picture(90, 40), "height": 45, "width": 20},
        ]
        together = model(inputs)
        assert [tuple(each["sem_seg"].shape) for each in together] == [(9, 50, 70), (9, 45, 20)]
        for each, output in zip(inputs, together):
            alone = model([each])[0]["sem_seg"]
            torch.testing.assert_close(output["sem_seg"], alone)
            torch.testing.assert_close(alone.sum(0), torch.ones_like(alone[0]))

    @pytest.mark.parametrize("size", [(33, 51), (100, 140)])
    def test_strips_change_nothing(self, monkeypatch, size):
        model = around(Linear(), min_size=50, logits=True)
        inputs = {"image": picture(66, 102), "height": size[0], "width": size[1]}
        whole = model([inputs])[0]["sem_seg"]
        monkeypatch.setattr("sgr.modeling.layers.strips.STRIP_ELEMENTS", 1)
        torch.testing.assert_close(model([inputs])[0]["sem_seg"], whole)

    def test_half_precision_is_summed_in_float32(self):
        class Half(Linear):
            def forward(self, inputs):
                return [{"sem_seg": each["sem_seg"].bfloat16()} for each in super().forward(inputs)]

        image = picture(40, 40)
        actual = around(Half(), scales=[1.0])([{"image": image}])[0]["sem_seg"]
        expected = torch.cat([image, -image.float()]) / 255
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, atol=2**-8, rtol=0)


class TestOutput:
    @pytest.mark.parametrize("name", ["fcn_R50", "maskformer_R50_sgr"])
    @pytest.mark.parametrize("window", [False, True])
    def test_labels_are_the_best_scores(self, tmp_path, name, window):
        results = {}
        for output in ("scores", "labels"):
            torch.manual_seed(3)
            cfg, model = framework(
                tmp_path,
                name,
                MODEL__MASK_FORMER__TEST__SEMANTIC_OUTPUT=output,
                TEST__AUG__SCALES="[0.5, 1.0]",
                TEST__SLIDING_WINDOW__ENABLED=window,
                TEST__SLIDING_WINDOW__SIZE=[32, 32],
                TEST__SLIDING_WINDOW__STRIDE=[30, 20],
            )
            torch.manual_seed(4)
            results[output] = build_multi_scale_model(cfg, model)(
                [{"image": picture(64, 70), "height": 80, "width": 90}]
            )[0]["sem_seg"]
        assert results["labels"].dtype == torch.int32
        assert torch.equal(results["labels"].long(), results["scores"].argmax(0))

    def test_leaves_the_model_as_it_was(self, tmp_path):
        cfg, model = framework(
            tmp_path,
            "maskformer_R50_sgr",
            MODEL__MASK_FORMER__TEST__SEMANTIC_OUTPUT="labels",
            TEST__AUG__SCALES="[0.5]",
        )
        model.instance_on = True
        names = ("semantic_output", "instance_on", "panoptic_on", "concepts_in_output")
        before = [getattr(model, name) for name in names]
        wrapper = build_multi_scale_model(cfg, model)
        assert list(wrapper([{"image": picture(40, 40)}])[0]) == ["sem_seg"]
        assert [getattr(model, name) for name in names] == before

        with pytest.raises(TypeError):
            wrapper([{"image": picture(40, 40), "height": "40"}])
        assert [getattr(model, name) for name in names] == before

    def test_reads_files(self, tmp_path):
        image = picture(40, 60)
        file = tmp_path / "image.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        model = around(Linear(), scales=[1.0], input_format="BGR")
        (output,) = model([{"file_name": str(file)}])
        torch.testing.assert_close(output["sem_seg"][:3], image.flip(0) / 255)
        with pytest.raises(FileNotFoundError, match="nowhere.png"):
            model([{"file_name": "nowhere.png"}])
        with pytest.raises(ValueError, match=r"'image' or 'file_name', got \['height'\]"):
            model([{"height": 3}])


class TestSizes:
    def test_relative_to_the_image_of_a_plain_test(self):
        model = around(Linear(), min_size=100, max_size=150)
        assert model.sizes(50, 60)[::2] == [(50, 60), (100, 120), (150, 180)]
        # Twice as wide as high: the longest side decides, at each scale.
        assert model.sizes(200, 400)[1:3] == [(57, 113), (75, 150)]

    def test_relative_to_the_image_itself(self):
        assert around(Linear()).sizes(40, 64)[::5] == [(20, 32), (70, 112)]

    def test_never_empty(self):
        assert around(Linear(), scales=[0.01]).sizes(10, 1000) == [(1, 100)]

    def test_one_view_each(self):
        model = Linear()
        around(model, scales=[0.5, 2.0])([{"image": picture(10, 20)}])
        assert model.seen == [(5, 10), (5, 10), (20, 40), (20, 40)]


def options(**more):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.merge_from_list([str(x) for key, value in more.items() for x in (f"TEST.AUG.{key}", value)])
    return cfg


class TestErrors:
    @pytest.mark.parametrize("scales", [[0.5, 0.0], [-1.0]])
    def test_scales(self, scales):
        with pytest.raises(ValueError, match="TEST.AUG.SCALES must all be above 0, got"):
            around(Linear(), scales=scales)

    def test_nothing_to_do(self):
        with pytest.raises(ValueError, match="needs either scales"):
            around(Linear(), scales=[])
        with pytest.raises(ValueError, match="needs either scales"):
            around(Linear(), min_sizes=[3])

    def test_min_sizes(self):
        with pytest.raises(ValueError, match="MIN_SIZES must all be above 0"):
            around(Linear(), scales=[], min_sizes=[-4])
        with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
            around(Linear(), max_size=0)

    def test_output(self):
        with pytest.raises(ValueError, match="'scores' or 'labels', got 'maps'"):
            around(Linear(), semantic_output="maps")

    def test_two_kinds_of_sizes(self, tmp_path):
        with pytest.raises(ValueError, match=r"\[256, 512\].*\[0.5, .*add TEST.AUG.SCALES"):
            cfg, model = framework(tmp_path, "maskformer_R50", TEST__AUG__MIN_SIZES="(256, 512)")
            build_multi_scale_model(cfg, model)

    def test_unknown_model(self):
        with pytest.raises(ValueError, match="Linear is none; set TEST.AUG.ENABLED"):
            build_multi_scale_model(options(), Linear())

    def test_nothing_semantic(self, tmp_path):
        cfg, model = framework(
            tmp_path, "maskformer_R50", MODEL__MASK_FORMER__TEST__SEMANTIC_ON=False
        )
        with pytest.raises(ValueError, match="SEMANTIC_ON to True"):
            build_multi_scale_model(cfg, model)

    def test_training_mode(self):
        with pytest.raises(RuntimeError, match="Linear is in training mode"):
            around(Linear().train())([{"image": picture(10, 10)}])

    def test_early(self, tiny_shapes, tmp_path):
        """Before the training, not after hours of it or of plain evaluation."""
        cfg = tiny_config(tmp_path, TEST__AUG__ENABLED=True)
        cfg.TEST.AUG.SCALES = [0.0]
        with pytest.raises(ValueError, match="above 0"):
            Trainer(cfg)

    def test_panoptic_fpn(self, tiny_shapes, tmp_path):
        cfg = tiny_detector_config(
            OUTPUT_DIR=tmp_path,
            MODEL__META_ARCHITECTURE="PanopticFPN",
            TEST__TOKENS__ENABLED=False,
            MODEL__SEM_SEG_HEAD__IN_FEATURES=["p2", "p3"],
            TEST__AUG__ENABLED=True,
        )
        with pytest.raises(ValueError, match="PanopticFPN is none"):
            plan_tests(cfg, Trainer.build_model(cfg))


@pytest.fixture(scope="module")
def weights(tiny_shapes_root, tmp_path_factory):
    """A file of the weights of a tiny model."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
        state = Trainer.build_model(tiny_config(folder)).state_dict()
    torch.save({"model": state}, folder / "weights.pth")
    return folder / "weights.pth"


class TestEngine:
    def test_evaluation(self, tiny_shapes, tmp_path, weights, caplog):
        cfg = tiny_config(
            tmp_path,
            MODEL__WEIGHTS=weights,
            TEST__AUG__ENABLED=True,
            TEST__AUG__SCALES="[0.5, 1.0]",
        )
        with caplog.at_level(logging.INFO, logger="sgr"):
            results = evaluate(cfg)
        assert list(results) == ["sem_seg", "tokens", "queries", "sem_seg_TTA"]
        assert 0 <= results["sem_seg_TTA"]["mIoU"] <= 100
        assert "Multi-scale testing: not measured are token metrics" in caplog.text
        assert caplog.text.count("Multi-scale testing: scales 0.5, 1.0, with flip\n") == 1
        assert (tmp_path / "inference_TTA" / "sem_seg.json").exists()

    def test_scales_are_made_of_the_files(self, tiny_shapes, tmp_path, weights, monkeypatch):
        """And one scale without flip is the plain test."""
        cfg = tiny_config(
            tmp_path,
            MODEL__WEIGHTS=weights,
            TEST__AUG__ENABLED=True,
            TEST__AUG__FLIP=False,
            TEST__AUG__SCALES="[1.0]",
            INPUT__MIN_SIZE_TEST=64,
        )
        seen = []
        segment = MultiScaleSemanticSegmentor._segment

        def spy(self, inputs):
            seen.append((*inputs["image"].shape[-2:], *self.sizes(*inputs["image"].shape[-2:])[0]))
            return segment(self, inputs)

        monkeypatch.setattr(MultiScaleSemanticSegmentor, "_segment", spy)
        results = evaluate(cfg)
        assert set(seen) == {(96, 96, 64, 64)}
        assert results["sem_seg_TTA"] == pytest.approx(results["sem_seg"], nan_ok=True, rel=1e-3)

    @pytest.mark.parametrize("name", ["maskformer_R50_sgr", "fcn_R50"])
    @pytest.mark.parametrize("limit", [0, 50])
    def test_scales_of_a_square(self, tmp_path, name, limit):
        """They are made of the square of TEST.CENTER_CROP_SIZE, and relative to it."""
        file = tmp_path / "image.png"
        Image.fromarray(picture(72, 99).permute(1, 2, 0).numpy()).save(file)
        dataset = f"one_{tmp_path.name}"
        DatasetCatalog.register(dataset, lambda: [{"file_name": str(file)}])
        seen = []

        class Collect(DatasetEvaluator):
            def process(self, inputs, outputs):
                seen.append((inputs[0]["image"], outputs[0]["sem_seg"]))

            def evaluate(self):
                return {"sem_seg": {}}

        class Collecting(Trainer):
            @classmethod
            def build_evaluator(cls, cfg, name, output_folder=None):
                return Collect()

        MetadataCatalog.get(dataset).set(evaluator_type="sem_seg")
        try:
            cfg, model = framework(
                tmp_path,
                name,
                DATASETS__TEST=f"('{dataset}',)",
                TEST__CENTER_CROP_SIZE=48,
                INPUT__MAX_SIZE_TEST=limit,
            )
            Collecting.test_with_TTA(cfg, model)
        finally:
            DatasetCatalog.pop(dataset)
            MetadataCatalog.pop(dataset)
        ((square, actual),) = seen
        resized = np.asarray(Image.open(file).resize((66, 48), Image.BILINEAR))
        assert torch.equal(square, torch.from_numpy(resized[:, 9:57].transpose(2, 0, 1).copy()))
        views = literal_views(square, 48, 48, SCALES)
        with torch.no_grad():
            softmax = FRAMEWORKS.get(name) != "as they are"
            expected = literal(model, views, size=(48, 48), softmax=softmax)
        assert actual.shape == (9, 48, 48)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    def test_after_training(self, tiny_shapes, tmp_path):
        cfg = tiny_config(
            tmp_path,
            SOLVER__MAX_ITER=2,
            TEST__EVAL_PERIOD=1,
            TEST__AUG__ENABLED=True,
            TEST__AUG__SCALES="[0.5]",
            MODEL__MASK_FORMER__TEST__SEMANTIC_OUTPUT="labels",
        )
        trainer = Trainer(cfg)
        trainer.train()
        assert list(trainer._last_eval_results) == ["sem_seg", "tokens", "queries", "sem_seg_TTA"]
        lines = (tmp_path / "metrics.json").read_text().splitlines()
        plain = ["sem_seg/mIoU" in line for line in lines]
        several = ["sem_seg_TTA/mIoU" in line for line in lines]
        # After each iteration; once, at the end, beside the last plain evaluation.
        assert sum(plain) == 2 and sum(several) == 1 and plain[-1] and several[-1]

    def test_datasets_without_label_maps(self, tiny_shapes, tmp_path, weights, caplog):
        names = ("shapes_sem_seg_val", "shapes_instance_val")
        cfg = tiny_config(tmp_path, DATASETS__TEST=names, TEST__AUG__SCALES="[0.5]")
        model = Trainer.build_model(cfg)
        with caplog.at_level(logging.INFO, logger="sgr"):
            results = Trainer.test_with_TTA(cfg, model)
        assert list(results) == ["shapes_sem_seg_val_TTA"]
        assert list(results["shapes_sem_seg_val_TTA"]) == ["sem_seg"]
        assert "anything on shapes_instance_val, since its evaluator_type is 'coco'" in caplog.text
        folder = tmp_path / "inference_TTA" / "shapes_sem_seg_val"
        assert (folder / "sem_seg.json").exists()
        cfg.DATASETS.TEST = names[1:]
        with pytest.raises(ValueError, match="measured on shapes_instance_val, since .*'coco'"):
            Trainer.test_with_TTA(cfg, model)

    @pytest.mark.parametrize("views", ["AUG", "SLIDING_WINDOW"])
    @pytest.mark.parametrize("run", [Trainer, evaluate])
    def test_no_dataset_with_label_maps_is_found_before_any_work(
        self, tiny_shapes, tmp_path, monkeypatch, views, run
    ):
        def refuse(*args, **kwargs):
            raise AssertionError("data or weights are loaded")

        monkeypatch.setattr(Trainer, "build_train_loader", refuse)
        monkeypatch.setattr("sgr.engine.trainer.SafeCheckpointer", refuse)
        cfg = tiny_config(
            tmp_path, DATASETS__TEST=("shapes_instance_val",), **{f"TEST__{views}__ENABLED": True}
        )
        with pytest.raises(ValueError, match="measured on shapes_instance_val, since .*'coco'"):
            run(cfg)

    def test_views_of_detectors_and_by_lengths_of_sides(self, tmp_path):
        options = {"TEST__AUG__MIN_SIZES": (48, 64), "TEST__AUG__FLIP": False}
        detector = tiny_detector_config(OUTPUT_DIR=tmp_path, **options)
        semantic = tiny_config(tmp_path, TEST__AUG__SCALES="[]", **options)
        for cfg in (detector, semantic):
            model = build_multi_scale_model(cfg, build_model(cfg).eval())
            assert describe_views(model) == "shortest sides of 48, 64, without flip"

    def test_detectors_need_no_label_maps(self, tiny_shapes, tmp_path):
        Trainer(tiny_detector_config(OUTPUT_DIR=tmp_path, TEST__AUG__ENABLED=True))

    @pytest.mark.parametrize(
        "record, classes, why",
        [
            ({}, 9, "there are records without sem_seg_file_name"),
            ({"sem_seg_file_name": "a.png"}, 4, "label maps have 4 classes and the model"),
        ],
    )
    def test_panoptic_datasets_without_label_maps_of_the_classes(
        self, tiny_shapes, tmp_path, caplog, record, classes, why
    ):
        """Left out beside others, rather than an error of their evaluators."""
        name = f"panoptic_{tmp_path.name}"
        DatasetCatalog.register(name, lambda: [record])
        MetadataCatalog.get(name).set(
            evaluator_type="coco_panoptic_seg", stuff_classes=["a"] * classes
        )
        try:
            both = ("shapes_sem_seg_val", name)
            cfg = tiny_config(tmp_path, DATASETS__TEST=both, TEST__AUG__SCALES="[0.5]")
            with caplog.at_level(logging.INFO, logger="sgr"):
                results = Trainer.test_with_TTA(cfg, Trainer.build_model(cfg))
            assert list(results) == ["shapes_sem_seg_val_TTA"]
            assert f"anything on {name}, since " in caplog.text and why in caplog.text
            cfg.DATASETS.TEST = (name,)
            with pytest.raises(ValueError, match=f"cannot be measured on {name}, since .*{why}"):
                plan_multi_scale_test(cfg, Trainer.build_model(cfg))
        finally:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)

    def test_evaluators_that_are_given_see_all_datasets(self, tiny_shapes, tmp_path):
        seen = []

        class Keys(DatasetEvaluator):
            def process(self, inputs, outputs):
                seen.extend(list(output) for output in outputs)

        cfg = tiny_config(
            tmp_path, DATASETS__TEST=("shapes_instance_val",), TEST__SLIDING_WINDOW__ENABLED=True
        )
        Trainer.test(cfg, Trainer.build_model(cfg), [Keys()])
        assert seen and all(keys == ["sem_seg"] for keys in seen)

    def test_only_the_semantic_results_of_a_panoptic_model(self, tiny_shapes, tmp_path, caplog):
        cfg = tiny_config(
            tmp_path,
            MODEL__MASK_FORMER__TEST__PANOPTIC_ON=True,
            MODEL__MASK_FORMER__TEST__INSTANCE_ON=True,
        )
        with caplog.at_level(logging.INFO, logger="sgr"):
            left = plan_multi_scale_test(cfg, Trainer.build_model(cfg)).cfg
        assert "Multi-scale testing: not measured are token metrics" in caplog.text
        assert "panoptic quality, AP" in caplog.text
        assert left.MODEL.MASK_FORMER.TEST.SEMANTIC_ON
        assert not left.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
        assert cfg.TEST.TOKENS.ENABLED

    def test_detectors_have_that_of_detectron2(self, tiny_shapes, tmp_path):
        cfg = tiny_detector_config(
            OUTPUT_DIR=tmp_path, TEST__AUG__ENABLED=True, TEST__AUG__MIN_SIZES="(64, 96)"
        )
        model = Trainer.build_model(cfg)
        results = Trainer.test_with_TTA(cfg, model)
        assert list(results) == ["bbox_TTA", "segm_TTA"]

    def test_no_windows_for_detectors(self):
        cfg = tiny_detector_config(TEST__SLIDING_WINDOW__ENABLED=True)
        with pytest.raises(ValueError, match="ConceptGeneralizedRCNN is none"):
            plan_tests(cfg, Trainer.build_model(cfg))

    def test_windows(self, tiny_shapes, tmp_path, weights, caplog):
        """In place of the plain test, and at each scale."""
        cfg = tiny_config(
            tmp_path,
            MODEL__WEIGHTS=weights,
            TEST__SLIDING_WINDOW__ENABLED=True,
            TEST__SLIDING_WINDOW__SIZE=[64, 64],
            TEST__SLIDING_WINDOW__STRIDE=[32, 32],
            TEST__AUG__ENABLED=True,
            TEST__AUG__SCALES="[0.5, 1.0]",
        )
        with caplog.at_level(logging.INFO, logger="sgr"):
            results = evaluate(cfg)
        assert list(results) == ["sem_seg", "sem_seg_TTA"]
        assert caplog.text.count("not measured are token metrics") == 2
        windows = "windows of 64 x 64 pixels, 32 x 32 from one to the next\n"
        assert caplog.text.count(f"Sliding windows: {windows}") == 1
        assert f"Multi-scale testing: scales 0.5, 1.0, with flip, by {windows}" in caplog.text
        inner = build_multi_scale_model(cfg, Trainer.build_model(cfg)).model
        assert isinstance(inner, SlidingWindowSegmentor)


class Operations(TorchDispatchMode):
    """Collects the names of PyTorch's operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("output", ["scores", "labels"])
def test_nothing_waits_for_the_device(logits, output):
    windows = SlidingWindowSegmentor(Linear(), size=(32, 32), stride=(16, 16))
    model = around(windows, logits=logits, semantic_output=output)
    with Operations() as operations:
        model([{"image": picture(50, 60), "height": 70, "width": 100}])
    assert "aten.add_" in operations.names
    assert operations.names.isdisjoint({"aten._local_scalar_dense", "aten.nonzero", "aten.equal"})
