"""Training and evaluating end to end, on a tiny model and tiny scenes."""

import json
import logging
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils.events import EventStorage, EventWriter

from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import (
    Trainer,
    argument_parser,
    evaluate,
    load_config,
    setup_config,
    train_or_evaluate,
)
from sgr.engine.hooks import BestCheckpoint, ConceptMonitor, ForgivingWriter
from sgr.engine.pictures import TrainingPictures, put_evaluation_pictures
from sgr.modeling.supervision.criterion import ConceptLosses
from tiny_model import CONFIG, tiny_config, tiny_options


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def logged(folder):
    """Lines of metrics.json; what is evaluated at the end comes on a line of its own."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def weights(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained(tiny_shapes_root, tmp_path_factory):
    """A finished training of six iterations, evaluated at its end."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
        options = {"TEST__EVAL_PERIOD": 6, "TEST__BEST_METRIC": "sem_seg/mIoU"}
        trainer = train(tiny_config(folder, TEST__PICTURES=2, **options))
    return folder, trainer._last_eval_results


class TestTraining:
    def test_leaves_what_detectron2_users_expect(self, trained):
        folder, _ = trained
        names = {path.name for path in folder.iterdir()}
        assert {"metrics.json", "model_final.pth", "last_checkpoint", "inference"} <= names
        assert any(name.startswith("events.out.tfevents") for name in names)

    def test_leaves_the_best_model(self, trained):
        """Without the rest of a checkpoint: no resumed training goes on from it."""
        folder, results = trained
        best = torch.load(folder / "model_best.pth", weights_only=True)
        last = weights(folder)
        assert all(torch.equal(value, last[name]) for name, value in best.pop("model").items())
        value = results["sem_seg"]["mIoU"]
        assert best == {"iteration": 5, "best": {"metric": "sem_seg/mIoU", "value": value}}
        checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1), str(folder))
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"
        assert not any("best" in path for path in checkpointer._checkpoints())

    def test_reports_segmentation_and_tokens(self, trained):
        _, results = trained
        assert 0 <= results["sem_seg"]["mIoU"] <= 100
        assert results["tokens"].keys() >= {"S_C", "D_C", "S_I", "D_I"}
        assert results["tokens"]["images_C"] == 5

    def test_logs_losses_and_concepts(self, trained):
        last = {name: value for line in logged(trained[0]) for name, value in line.items()}
        for name in ("focal", "dice", "cosine"):
            assert np.isfinite(last[f"loss_concept_{name}"])
        assert 0 <= last["sgr/active_concepts"] <= 1
        assert -1 <= last["sgr/token_similarity"] <= 1
        assert 1 <= last["sgr/components_per_image"] <= 24
        assert 24 / 32 <= last["sgr/concepts_matched_per_epoch"] <= 1
        assert {"loss_ce", "loss_mask", "loss_dice", "lr", "tokens/S_C"} <= last.keys()

    def test_loss_falls(self, tiny_shapes, tmp_path):
        torch.manual_seed(0)
        cfg = tiny_config(
            tmp_path, SOLVER__MAX_ITER=60, SOLVER__BASE_LR=0.01, SOLVER__CHECKPOINT_PERIOD=1000
        )
        trainer = train(cfg)
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    def test_evaluates_what_was_trained(self, trained, tiny_shapes, tmp_path):
        folder, results = trained
        cfg = tiny_config(tmp_path, MODEL__WEIGHTS=folder / "model_final.pth")
        again = evaluate(cfg)
        assert again["sem_seg"]["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])
        assert again["tokens"]["S_C"] == pytest.approx(results["tokens"]["S_C"], rel=1e-5)

    def test_an_infinite_loss_ends_it_with_advice(self, tiny_shapes, tmp_path):
        cfg = tiny_config(tmp_path, MODEL__MASK_FORMER__MASK_WEIGHT=1e300)
        message = "infinite or nan at iteration 0: .*lower SOLVER.BASE_LR.*loss_mask"
        with pytest.raises(FloatingPointError, match=re.compile(message, re.DOTALL)):
            train(cfg)

    def test_without_concept_losses(self, tiny_shapes, tmp_path):
        cfg = tiny_config(tmp_path, MODEL__SGR__SUPERVISION__WEIGHT=0.0, SOLVER__MAX_ITER=2)
        trainer = train(cfg)
        assert "loss_concept_focal" not in trainer.storage.latest()

    def test_query_masks_are_the_tokens_of_plain_maskformer(self, tiny_shapes, tmp_path):
        cfg = tiny_config(
            tmp_path,
            MODEL__BACKBONE__NAME="build_resnet_backbone",
            MODEL__SGR__SUPERVISION__WEIGHT=0.0,
            SOLVER__MAX_ITER=1,
            TEST__EVAL_PERIOD=1,
        )
        assert train(cfg)._last_eval_results["tokens"]["images_C"] == 5

    @pytest.mark.parametrize("amp", [True, False])
    def test_mixed_precision(self, tiny_shapes, tmp_path, amp, caplog):
        cfg = tiny_config(tmp_path, SOLVER__AMP__ENABLED=amp, SOLVER__MAX_ITER=2)
        with caplog.at_level(logging.INFO):
            trainer = train(cfg)
        assert np.isfinite(trainer.storage.latest()["total_loss"][0])
        assert ("torch.bfloat16" in caplog.text) == amp

    def test_mixed_precision_switched_on_at_resume(self, tiny_shapes, tmp_path):
        train(tiny_config(tmp_path, SOLVER__MAX_ITER=2))
        cfg = tiny_config(tmp_path, SOLVER__MAX_ITER=3, SOLVER__AMP__ENABLED=True)
        assert train(cfg, resume=True).start_iter == 2


def test_the_results_come_back_from_a_training_and_an_evaluation(
    tiny_shapes, tmp_path, monkeypatch
):
    # It would take the loggers of the other tests away.
    monkeypatch.setattr("sgr.engine.trainer.default_setup", lambda cfg, args: None)
    parse = argument_parser().parse_args
    options = ["--config-file", str(CONFIG)]
    cfg = tiny_config(tmp_path, SOLVER__MAX_ITER=1)
    trained = train_or_evaluate(cfg, parse(options))
    assert list(trained) == ["sem_seg", "tokens", "queries"]
    cfg = tiny_config(tmp_path, MODEL__WEIGHTS=tmp_path / "model_final.pth")
    evaluated = train_or_evaluate(cfg, parse([*options, "--eval-only"]))
    assert evaluated["sem_seg"]["mIoU"] == pytest.approx(trained["sem_seg"]["mIoU"])


class TestResultsFile:
    def test_a_training_leaves_one(self, trained):
        folder, results = trained
        assert read_results(folder / "inference") == as_written(results)
        assert not list((folder / "inference").glob(".*"))

    @pytest.mark.parametrize("several", [False, True])
    def test_an_evaluation_leaves_one_per_kind_of_test(
        self, trained, tiny_shapes, tmp_path, several
    ):
        names = ("shapes_sem_seg_val", "shapes_sem_seg_train")[: 1 + several]
        cfg = tiny_config(
            tmp_path,
            MODEL__WEIGHTS=trained[0] / "model_final.pth",
            DATASETS__TEST=names,
            TEST__AUG__ENABLED=True,
            TEST__AUG__SCALES="[0.5]",
            TEST__AUG__FLIP=False,
        )
        results = as_written(evaluate(cfg))
        one, two = (read_results(tmp_path / name) for name in ("inference", "inference_TTA"))
        assert {**one, **two} == results
        first = names if several else ("sem_seg", "tokens", "queries")
        assert tuple(one) == first
        assert list(two) == [f"{name}_TTA" for name in (names if several else ["sem_seg"])]

    def test_sliding_windows_leave_one(self, trained, tiny_shapes, tmp_path):
        cfg = tiny_config(
            tmp_path,
            MODEL__WEIGHTS=trained[0] / "model_final.pth",
            TEST__SLIDING_WINDOW__ENABLED=True,
        )
        results = as_written(evaluate(cfg))
        assert read_results(tmp_path / "inference") == results

    def test_where_it_is_is_logged_once(self, trained, tiny_shapes, tmp_path, caplog):
        cfg = tiny_config(tmp_path, MODEL__WEIGHTS=trained[0] / "model_final.pth")
        with caplog.at_level(logging.INFO):
            evaluate(cfg)
        said = f"All results are in {tmp_path / 'inference' / 'results.json'}"
        assert [each.message for each in caplog.records].count(said) == 1

    def test_there_is_none_without_a_dataset(self, tiny_shapes, tmp_path):
        cfg = tiny_config(tmp_path, DATASETS__TEST="()")
        assert Trainer.test(cfg, Trainer.build_model(cfg)) == {}
        assert not (tmp_path / "inference").exists()


def read_results(folder):
    def refuse(constant):
        raise AssertionError(f"JSON has no {constant}")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def as_written(results):
    """With None in the place of nan."""
    if isinstance(results, dict):
        return {key: as_written(value) for key, value in results.items()}
    return None if np.isnan(results) else results


def test_records_nested_too_deeply(tiny_shapes, tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    records = [{**record, "extra": deep} for record in DatasetCatalog.get("shapes_sem_seg_val")]
    DatasetCatalog.register("deep", lambda: records)
    known = MetadataCatalog.get("shapes_sem_seg_val")
    MetadataCatalog.get("deep").set(stuff_classes=known.stuff_classes, ignore_label=255)
    try:
        cfg = tiny_config(tmp_path, DATASETS__TRAIN="('deep',)")
        with pytest.raises(ValueError, match="record of deep has values that are nested too deep"):
            Trainer.build_train_loader(cfg)
        with pytest.raises(ValueError, match="record of deep has values that are nested too deep"):
            Trainer.build_test_loader(cfg, "deep")
    finally:
        DatasetCatalog.remove("deep")
        MetadataCatalog.remove("deep")


def test_channels_last_changes_the_memory_only(trained, tiny_shapes, tmp_path):
    cfg = tiny_config(tmp_path, MODEL__CHANNELS_LAST=True)
    model = Trainer.build_model(cfg)
    SafeCheckpointer(model).load(str(trained[0] / "model_final.pth"))
    for name, weight in model.named_parameters():
        if weight.dim() == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last), name
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        found = model.eval()([{"image": image}])[0]["sem_seg"]
        expected = model.to(memory_format=torch.contiguous_format)([{"image": image}])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class TestResume:
    def test_goes_on_where_it_stopped(self, tiny_shapes, tmp_path):
        """Three iterations, a stop, three more: as if nothing had happened."""
        cfg = tiny_config(tmp_path)
        interrupted = Trainer(cfg)
        interrupted.resume_or_load(resume=False)
        interrupted.max_iter = 3
        interrupted.train()

        resumed = Trainer(cfg)
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 3
        optimizer = resumed.optimizer.state_dict()
        assert optimizer["state"] and resumed.scheduler.last_epoch == 3
        before = weights(tmp_path, "model_0000002")
        state = resumed.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in before.items())

        resumed.train()
        iterations = [line["iteration"] for line in logged(tmp_path) if "total_loss" in line]
        assert iterations == [2, 5]
        after = weights(tmp_path)
        assert any(not torch.equal(after[name], value) for name, value in before.items())

    def test_without_a_checkpoint_starts_anew(self, tiny_shapes, tmp_path):
        trainer = Trainer(tiny_config(tmp_path))
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 0


class TestConfig:
    def arguments(self, *arguments):
        return argument_parser().parse_args(arguments)

    def test_command_line_beats_the_file(self):
        cfg = load_config(str(CONFIG), ["SOLVER.MAX_ITER", "7"])
        assert cfg.SOLVER.MAX_ITER == 7 and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 9

    def test_own_configs_need_no_tags(self):
        for file in CONFIG.parents[1].rglob("*.yaml"):
            yaml.safe_load(file.read_text())
            load_config(str(file))

    def test_written_config_can_be_read(self, tmp_path):
        cfg = load_config(str(CONFIG))
        file = tmp_path / "config.yaml"
        file.write_text(cfg.dump())
        again = load_config(str(file))
        assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())

    def test_missing_file(self):
        with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
            load_config("nowhere.yaml")

    def test_tags_that_run_code(self, tmp_path):
        victim = tmp_path / "victim"
        file = tmp_path / "evil.yaml"
        file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{victim}']\n")
        with pytest.raises(ValueError, match="evil.yaml.*--allow-unsafe-yaml"):
            load_config(str(file))
        assert not victim.exists()

        file.write_text("OUTPUT_DIR: !!python/object/apply:eval [\"'a' + 'b'\"]\n")
        assert load_config(str(file), allow_unsafe=True).OUTPUT_DIR == "ab"

    def test_unknown_key(self):
        with pytest.raises(Exception, match="MODEL.SGR.NUM_CONCEPT\\b"):
            load_config(str(CONFIG), ["MODEL.SGR.NUM_CONCEPT", "3"])

    def test_flag_behind_options(self):
        args = argument_parser().parse_args(["SEED", "1", "--config-file", str(CONFIG)])
        with pytest.raises(ValueError, match="--config-file stands behind KEY VALUE"):
            load_config(args.config_file, args.opts)

    def test_keys_of_others_stay(self):
        from detectron2.config import CfgNode

        from sgr import add_sgr_config

        cfg = get_cfg()
        cfg.MODEL.MASK_FORMER = CfgNode({"NHEADS": 4})
        add_sgr_config(cfg)
        assert cfg.MODEL.MASK_FORMER.NHEADS == 4 and cfg.MODEL.MASK_FORMER.DEC_LAYERS == 6

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_without_a_gpu_it_says_so_and_uses_the_cpu(self, tmp_path, capsys):
        args = self.arguments(
            "--config-file",
            str(CONFIG),
            "OUTPUT_DIR",
            str(tmp_path),
            "MODEL.RESNETS.NORM",
            "SyncBN",
        )
        cfg = setup_config(args)
        assert cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.RESNETS.NORM == "BN"
        assert capsys.readouterr().out.count("There is no GPU") == 1

    def test_log_file(self, tmp_path):
        setup_config(
            self.arguments("--config-file", str(CONFIG), "OUTPUT_DIR", str(tmp_path / "run"))
        )
        assert (tmp_path / "run" / "log.txt").exists()

    def test_fewer_concepts_than_active_ones(self, tiny_shapes, tmp_path):
        with pytest.raises(ValueError, match="K = 16.*L = 24"):
            Trainer(tiny_config(tmp_path, MODEL__SGR__NUM_CONCEPTS=16))

    def test_unknown_feature(self, tiny_shapes, tmp_path):
        with pytest.raises(ValueError, match="'res5'.*res2, res3"):
            Trainer(tiny_config(tmp_path, MODEL__SGR__IN_FEATURES="['res5']"))

    def test_nobody_supervises(self, tiny_shapes, tmp_path):
        with pytest.raises(ValueError, match="to ConceptMaskFormerSegmentor"):
            Trainer(tiny_config(tmp_path, MODEL__META_ARCHITECTURE="MaskFormerSegmentor"))

    def test_nothing_to_evaluate(self, tiny_shapes, tmp_path):
        with pytest.raises(ValueError, match="no weights to evaluate"):
            evaluate(tiny_config(tmp_path))

    def test_no_dataset_to_evaluate_on(self, tiny_shapes, tmp_path, caplog):
        cfg = tiny_config(tmp_path, DATASETS__TEST="()")
        with pytest.raises(ValueError, match="DATASETS.TEST names no dataset"):
            evaluate(cfg)
        with caplog.at_level(logging.WARNING):
            Trainer(cfg)
        assert caplog.text.count("DATASETS.TEST names no dataset") == 1

    def test_no_dataset_to_train_on(self, tiny_shapes, tmp_path):
        with pytest.raises(ValueError, match="DATASETS.TRAIN names no dataset"):
            Trainer(tiny_config(tmp_path, DATASETS__TRAIN="()"))

    def test_fewer_classes_than_the_data_have(self, tmp_path):
        """Which Detectron2 knows only once they are loaded."""
        name, file = f"lazy_{tmp_path.name}", tmp_path / "instances.json"
        categories = [{"id": id, "name": str(id)} for id in range(1, 6)]
        image = {"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
        annotation.update(segmentation=[[1, 1, 6, 1, 6, 6]], iscrowd=0)
        coco = {"images": [image], "annotations": [annotation], "categories": categories}
        file.write_text(json.dumps(coco))
        register_coco_instances(name, {}, str(file), str(tmp_path))
        cfg = tiny_config(
            tmp_path,
            DATASETS__TRAIN=f"('{name}',)",
            DATASETS__TEST="()",
            INPUT__CROP__ENABLED=False,
            INPUT__DATASET_MAPPER_NAME="mask_former_instance_concept",
            MODEL__SEM_SEG_HEAD__NUM_CLASSES=4,
        )
        with pytest.raises(ValueError, match=f"NUM_CLASSES is 4, but the dataset {name} has 5 cl"):
            Trainer.build_train_loader(cfg)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
        assert Trainer.build_train_loader(cfg).num_images == 1
        annotation["iscrowd"] = 1
        file.write_text(json.dumps(coco))
        with pytest.raises(ValueError, match=f"no image of {name} has an instance.*FILTER_EMPTY"):
            Trainer.build_train_loader(cfg)
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    def test_missing_dataset(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
        with pytest.raises(FileNotFoundError, match="make_shapes.py"):
            Trainer(tiny_config(tmp_path))


def test_options_are_those_of_detectron2():
    args = argument_parser().parse_args(
        [
            "--config-file",
            "f",
            "--num-gpus",
            "2",
            "--num-machines",
            "1",
            "--resume",
            "--eval-only",
            "--dist-url",
            "auto",
            *tiny_options(),
        ]
    )
    assert args.num_gpus == 2 and args.resume and args.eval_only and args.dist_url == "auto"
    assert not args.allow_pickle and not args.allow_unsafe_yaml


def test_pictures_of_the_training(tiny_shapes, tmp_path):
    """VIS_PERIOD shows image, labels and prediction, and leaves no hook on the model."""
    trainer = Trainer(tiny_config(tmp_path, SOLVER__MAX_ITER=3, VIS_PERIOD=2))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        put_image = EventStorage.put_image
        patch.setattr(
            EventStorage,
            "put_image",
            lambda self, name, image: (drawn.append((name, image)), put_image(self, name, image)),
        )
        trainer.train()
    assert len(drawn) == 2
    for name, image in drawn:
        assert name == "image, labels, prediction"
        assert image.shape[0] == 3 and image.shape[2] % 3 == 0 and image.dtype == np.uint8
    assert not trainer.model.sem_seg_head._forward_hooks


def test_no_picture_of_the_training_is_worth_it(tiny_shapes, tmp_path, caplog):
    """An image without masks has none of its labels drawn, a picture that fails is a warning."""
    trainer = Trainer(tiny_config(tmp_path, SOLVER__MAX_ITER=2, VIS_PERIOD=1))
    drawn = []
    draw = TrainingPictures._draw

    def first_without_masks(self, model):
        if drawn:
            raise RuntimeError("no paint")
        self._inputs[0]["instances"].remove("gt_masks")
        drawn.append(draw(self, model))
        return drawn[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingPictures, "_draw", first_without_masks)
        trainer.train()
    image, labels, _ = np.split(drawn[0], 3, axis=1)
    assert image.shape == labels.shape
    assert "no picture of iteration 1 in TensorBoard: RuntimeError: no paint" in caplog.text


def test_pictures_of_evaluations_and_token_metrics_are_in_tensorboard(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(trained[0]), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["shapes_sem_seg_val/00000", "shapes_sem_seg_val/00004"]
    (picture,) = events.Images("shapes_sem_seg_val/00000")
    assert picture.step == 6 and picture.width > picture.height > 500  # two rows of four
    (value,) = events.Scalars("tokens/S_C")
    assert value.value == pytest.approx(trained[1]["tokens"]["S_C"], rel=1e-5)


def test_pictures_of_evaluations_leave_the_model_as_it_is(
    tiny_shapes, tmp_path, monkeypatch, caplog
):
    trainer = Trainer(tiny_config(tmp_path))
    (test,) = trainer.tests
    random = torch.get_rng_state()
    with EventStorage(7) as storage:
        put_evaluation_pictures(test, 1)
        ((name, picture, step),) = storage._vis_data
        assert name == "shapes_sem_seg_val/00000" and picture.shape[0] == 3 and step == 7
        storage.clear_images()

        def fail(*args, **options):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("sgr.engine.pictures.draw_inspected", fail)
        put_evaluation_pictures(test, 1)
        assert not storage._vis_data
    assert "no picture of" in caplog.text and "out of memory; TEST.PICTURES 0" in caplog.text
    assert trainer.model.training and torch.equal(random, torch.get_rng_state())


def test_a_part_that_cannot_be_built(tmp_path):
    cfg = tiny_config(tmp_path, MODEL__RESNETS__RES5_DILATION=3)
    with pytest.raises(ValueError, match="does not make a model.*AssertionError"):
        Trainer.build_model(cfg)


def test_concepts_of_two_modules_are_counted_apart():
    def step(iteration, *matched):
        monitor.trainer.iter = iteration
        for each in matched:
            each = np.array([each], dtype=bool)
            monitor._watch(None, None, ConceptLosses({}, each, torch.tensor(0.5)))
        monitor.after_step()

    monitor = ConceptMonitor(iterations_per_epoch=2)
    with EventStorage() as storage:
        monitor.trainer = SimpleNamespace(storage=storage, max_iter=4)
        step(0, [1, 0], [0, 1, 0])
        step(1, [1, 0], [0, 0, 1])
        assert storage.latest()["sgr/concepts_matched_per_epoch"][0] == pytest.approx(3 / 5)
        step(2, [1, 0], [0, 0, 0])
        step(3, [0, 1], [0, 0, 0])
        assert storage.latest()["sgr/concepts_matched_per_epoch"][0] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("metric", "values", "saved"),
    [
        ("sem_seg/mIoU", [np.nan, 40.0, 40.0, 39.0, 41.0], [3, 9]),
        ("tokens/S_C", [0.8, 0.9, 0.8, np.nan, 0.5], [1, 9]),
    ],
)
def test_the_best_evaluation_is_kept(metric, values, saved, tmp_path, caplog):
    """Evaluations are after iterations 1, 3, 5, 7 and, in the end, 9; it is resumed after 5."""
    found = []

    class Checkpointer(SafeCheckpointer):
        def save_best(self, iteration, best):
            found.append((iteration, best["value"]))
            super().save_best(iteration=iteration, best=best)

    class Toy(TrainerBase):
        _last_eval_results = {}
        checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))

        def run_step(self):
            if self.iter == self.fails_at:
                raise KeyboardInterrupt

        def evaluate(self):
            task, name = metric.split("/")
            value = np.float64(values[min(self.iter, 9) // 2])
            self._last_eval_results = {task: {name: value, "images": 5}}

    def go_on(start, fails_at, metric=metric):
        trainer, hook = Toy(), BestCheckpoint(2, metric)
        trainer.fails_at = fails_at
        trainer.register_hooks([EvalHook(2, trainer.evaluate), hook])
        with nullcontext() if fails_at is None else pytest.raises(KeyboardInterrupt):
            trainer.train(start, 10)
        return hook.best

    go_on(0, fails_at=6)
    go_on(6, fails_at=None)
    assert [iteration for iteration, _ in found] == saved
    assert all(type(value) is float for _, value in found)
    assert go_on(9, fails_at=9) == found[-1][1]
    assert go_on(9, fails_at=9, metric="bbox/AP") is None  # values of another metric say nothing
    assert go_on(0, fails_at=0) is None  # a new training
    assert f"TEST.BEST_METRIC is {metric!r}, which this evaluation does not have" in caplog.text


def test_refined_tokens_are_compared():
    monitor = ConceptMonitor(iterations_per_epoch=2)
    mixer, tokens = torch.nn.Dropout(), torch.randn(2, 3, 8)
    mixer.register_forward_hook(monitor._compare)
    pairs = [
        torch.cosine_similarity(image[one], image[other], dim=0)
        for image in tokens
        for one, other in ((0, 1), (0, 2), (1, 2))
    ]
    with EventStorage() as storage:
        for iteration in (18, 19, 20):
            monitor.trainer = SimpleNamespace(storage=storage, max_iter=40, iter=iteration)
            mixer(tokens)
            mixer.eval()(torch.ones(2, 3, 8))  # an evaluation
            mixer.train()
            monitor.after_step()
        similarity = storage.latest()["sgr/token_similarity"][0]
        assert len(storage.history("sgr/token_similarity").values()) == 1
    assert similarity == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)


def test_metrics_that_cannot_be_written_are_a_warning(caplog):
    class Full(EventWriter):
        def write(self):
            raise OSError(28, "No space left on device")

        close = write

    writer = ForgivingWriter(Full())
    writer.write()
    writer.write()
    writer.close()
    assert caplog.text.count("Full cannot write metrics: [Errno 28] No space") == 1
