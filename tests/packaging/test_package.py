"""Model folders, from a trained model to everything that takes one."""

import json
import os
import pickletools
import runpy
import shutil
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

import sgr
import sgr.__main__ as sgr_main
from explorer_data import read_script
from sgr.checkpoints.checkpointer import SafeCheckpointer, read_checkpoint
from sgr.checkpoints.model_folder import FILES, digest
from sgr.engine import Trainer, argument_parser, load_config, setup_config
from sgr.engine.trainer import evaluate
from sgr.inference import dataset_metadata
from sgr.packaging import license_file, package, package_model, push_model
from tiny_detector import tiny_detector_config
from tiny_model import CHECKOUT, CONFIG, tiny_config, tiny_options

RESULTS = {
    "sem_seg": {"mIoU": 89.4, "mmin(IoU, B-Iou)": 60.5, "IoU-sky": 96.5, "ACC-sky": None},
    "tokens": {"S_C": 0.43, "images_C": 100},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training: checkpoint, config and results of a tiny MaskFormer."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    cfg = tiny_config(folder)
    classes = {"stuff_classes": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes}
    model = build_model(cfg)
    content = {"model": model.state_dict(), "iteration": 5, "trainer": {"classes": classes}}
    torch.save(content, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "inference").mkdir()
    (folder / "inference" / "results.json").write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture(scope="module")
def packaged(run, tmp_path_factory):
    """Its model folder, made by the tool."""
    folder = tmp_path_factory.mktemp("packaged") / "tiny"
    main(run, folder, "--license", "apache-2.0")
    return folder


@pytest.fixture
def folder(packaged, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(packaged, tmp_path / "tiny")


def main(run, folder, *more):
    tool = runpy.run_path(str(CHECKOUT / "tools" / "package_model.py"))
    weights = run / "model_final.pth"
    tool["main"](
        ["--config-file", str(run / "config.yaml"), "--weights", str(weights)]
        + ["--output", str(folder), *map(str, more)]
    )


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_in_it(packaged, run):
    assert {file.name for file in packaged.iterdir()} == set(FILES) - {"LICENSE"}
    with pytest.raises(ValueError):
        list(pickletools.genops((packaged / "model.safetensors").read_bytes()))
    config = yaml.safe_load((packaged / "config.yaml").read_text())
    assert config["DATASETS"]["FILES"] == [] and config["MODEL"]["DEVICE"] == "cuda"
    assert str(run) not in (packaged / "config.yaml").read_text()
    described = json.loads((packaged / "model.json").read_text())
    assert described["metrics"] == RESULTS
    assert described["source"] == "model_final.pth, 6 iterations"
    assert described["num_classes"] == {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9}
    assert described["classes"]["stuff_classes"][:2] == ["sky", "water"]
    assert described["classes"]["stuff_colors"][0] == [120, 180, 240]
    assert described["classes"]["things"] == [4, 5, 6, 7, 8]  # disc to ring
    assert described["settings"]["INPUT.FORMAT"] == "RGB"
    assert len({os.stat(packaged / name).st_mode for name in ("model.json", *FILES[:2])}) == 1


def test_whose_metrics_they_are(folder, tmp_path, capsys):
    """Not those of another checkpoint of the training, nor of another model beside a folder."""
    tool = runpy.run_path(str(CHECKOUT / "tools" / "package_model.py"))
    files = {"model_0000249.pth": 1, "model_final.pth": 2, "inference/results.json": 3}
    files["backbone.pth"] = 2.5
    (tmp_path / "inference").mkdir()
    shutil.copytree(folder, tmp_path / "other")
    for name, time in files.items():
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text('{"sem_seg": {"mIoU": 1.0}}')
        os.utime(tmp_path / name, (time, time))
    early, last = tmp_path / "model_0000249.pth", tmp_path / "model_final.pth"
    results = tmp_path / "inference" / "results.json"
    assert tool["read_results"](last, None) == {"sem_seg": {"mIoU": 1.0}}
    assert tool["read_results"](early, None) == {}
    assert f"{results} may be of {last}, so left out" in capsys.readouterr().out
    assert tool["read_results"](early, results) == {"sem_seg": {"mIoU": 1.0}}
    os.utime(results, (1.5, 1.5))  # evaluated before the last checkpoint
    assert tool["read_results"](early, None) == {"sem_seg": {"mIoU": 1.0}}
    assert tool["read_results"](last, None) == {}
    for weights in (tmp_path / "other", tmp_path / "other" / "model.safetensors"):
        assert tool["read_results"](weights, None) == RESULTS


def test_everything_takes_it(packaged, run, monkeypatch, tmp_path):
    expected = torch.load(run / "model_final.pth")["model"]
    monkeypatch.chdir(packaged.parent)
    forms = [("tiny",), (packaged,), ("tiny/config.yaml",), (CONFIG, "tiny", *tiny_options())]
    forms.append((run / "config.yaml", packaged / "model.safetensors"))
    for form in forms:
        model, cfg = sgr.load_model(*form)
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert load_config("tiny", ["MODEL.WEIGHTS", "x.pth"]).MODEL.WEIGHTS == "x.pth"


def test_names_and_colours_without_the_dataset(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("shapes_sem_seg", "nobody_has_this"))
    image = np.zeros((40, 50, 3), np.uint8)
    result = sgr.Predictor.load(folder)(image)
    assert result.stuff_classes[:2] == ["sky", "water"] and len(result.stuff_classes) == 9
    assert result.metadata.stuff_colors[0] == [120, 180, 240]
    assert result.metadata.class_tree["round"] == ["disc", "ring"]


def test_a_training_that_started_from_a_folder_has_the_names_of_its_data(packaged, tmp_path):
    cfg = tiny_config(tmp_path, MODEL__SEM_SEG_HEAD__NUM_CLASSES=5, DATASETS__TRAIN="()")
    assert dataset_metadata(cfg).name == cfg.DATASETS.TEST[0]
    cfg.MODEL.WEIGHTS = str(packaged)
    assert dataset_metadata(cfg).name == cfg.DATASETS.TEST[0]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9
    assert dataset_metadata(cfg).name == str(packaged)


def test_an_evaluation(packaged, tiny_shapes_root, tmp_path, monkeypatch):
    """With nothing but the folder, twice, each in a folder of its own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
    monkeypatch.chdir(tmp_path)
    options = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    for name in ("tiny", "tiny_2"):
        args = ["--eval-only", "--config-file", str(packaged), *options]
        cfg = setup_config(argument_parser().parse_args(args))
        assert cfg.OUTPUT_DIR == os.path.join("./output/evaluations", name)
    results = evaluate(cfg)
    file = tmp_path / "output" / "evaluations" / "tiny_2" / "inference" / "results.json"
    assert json.loads(file.read_text())["sem_seg"]["mIoU"] == pytest.approx(
        results["sem_seg"]["mIoU"]
    )


def test_only_evaluations_without_a_folder_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more, expected in (
        (["--eval-only", "OUTPUT_DIR", "mine"], "mine"),
        (["--eval-only", "--resume"], "./output"),
        ([], "./output"),
    ):
        at_end = more[1:] if "OUTPUT_DIR" in more else []
        flags = more[: len(more) - len(at_end)]
        args = [*flags, "--config-file", str(CONFIG), *tiny_options(), *at_end]
        assert setup_config(argument_parser().parse_args(args)).OUTPUT_DIR == expected


def test_classes_of_other_data_are_refused(folder, tiny_shapes_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
    described = json.loads((folder / "model.json").read_text())
    described["classes"]["stuff_classes"][0] = "sea"
    change(folder / "model.json", classes=described["classes"])
    cfg = load_config(str(folder), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ValueError, match="class 0 is 'sea' in the checkpoint, but 'sky'"):
        evaluate(cfg)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "model.json").unlink(), "no model folder: it has no model.json"),
        (lambda f: (f / "config.yaml").unlink(), "has no config.yaml: copy the whole"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors: copy"),
        (lambda f: (f / "model.json").write_text("{"), "model.json' cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), "does not describe a model"),
        (lambda f: change(f / "model.json", format=9), "of format 9; this release knows"),
        (lambda f: change(f / "model.json", classes=None), "damaged: its classes is None"),
        (
            lambda f: change(f / "model.json", num_classes={"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}),
            "has MODEL.SEM_SEG_HEAD.NUM_CLASSES 9, but the model has 7 classes",
        ),
        (
            lambda f: os.truncate(f / "model.safetensors", 5000),
            "are not the weights that model.json describes .* damaged or of another model",
        ),
    ],
)
def test_damage_is_told(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        sgr.load_model(folder)


def test_weights_of_another_model(folder, run):
    """Of another training of the same model, where all shapes fit."""
    model = build_model(tiny_config(run))
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match="damaged or of another model"):
        sgr.load_model(folder)
    with pytest.raises(ValueError, match="damaged or of another model"):
        read_checkpoint(str(folder))


def test_an_explorer_has_the_name_of_the_folder(folder, tiny_shapes_root, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
    explorer = ["--explorer", str(tmp_path / "explorer")]
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"]
    args = ["--eval-only", *explorer, "--config-file", str(folder), *options]
    sgr_main.main(argument_parser().parse_args(args))
    (content,) = read_script(tmp_path / "explorer" / "data" / "index.js", "explorerIndex")
    assert [model["name"] for model in content["models"]] == [folder.name]


def test_a_folder_of_a_training_is_not_one(run):
    with pytest.raises(ValueError, match="no model folder: .* did you mean .*model_final.pth"):
        sgr.load_model(run / "config.yaml", run)


def test_a_strangers_config_runs_and_writes_nothing(folder):
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("OUTPUT_DIR: ./output", "OUTPUT_DIR: /somewhere"))
    assert sgr.load_model(folder)[1].OUTPUT_DIR == "./output"
    torch.save({"model": {}}, folder / "model.safetensors")  # a pickle, of the right SHA-256
    change(folder / "model.json", sha256=digest(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        sgr.load_model(folder, allow_pickle=True)
    config.write_text(text + "SEED: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ValueError, match="a tag that can run code"):
        sgr.load_model(folder, allow_unsafe_yaml=True)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A model folder whose backbone has the stages of the tiny detector's."""
    folder = tmp_path_factory.mktemp("big")
    detector = tiny_detector_config()
    stages = str(detector.MODEL.RESNETS.OUT_FEATURES)
    cfg = tiny_config(
        folder,
        MODEL__RESNETS__OUT_FEATURES=stages,
        MODEL__RESNETS__NORM="FrozenBN",
        MODEL__SGR__NUM_CONCEPTS=8,
        MODEL__SGR__SUPERVISION__WEIGHT=0.0,
        MODEL__SGR__IN_FEATURES="['res5']",
        MODEL__SEM_SEG_HEAD__IN_FEATURES=stages,
        MODEL__PIXEL_MEAN="[1.0, 2.0, 3.0]",
    )
    model = build_model(cfg)
    package_model(model, cfg, folder / "tiny")
    return folder / "tiny", model.state_dict()


def test_a_detector_starts_from_its_backbone(big, tmp_path, caplog):
    """As from the file of tools/extract_backbone.py, with the same warning."""
    folder, state = big
    extract = runpy.run_path(str(CHECKOUT / "tools" / "extract_backbone.py"))["main"]
    extract([str(folder), str(tmp_path / "backbone.pth")])
    starts = []
    for weights in (folder, tmp_path / "backbone.pth"):
        torch.manual_seed(1)
        detector = build_model(tiny_detector_config(MODEL__SGR__IN_FEATURES="['res5']"))
        caplog.clear()
        with caplog.at_level("INFO", logger="sgr"):
            SafeCheckpointer(detector).load(str(weights))
        assert "The file holds a backbone only" in caplog.text
        assert "MODEL.PIXEL_MEAN [1.0, 2.0, 3.0]" in caplog.text
        starts.append(detector.state_dict())
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    name = "res5.0.conv1.weight"
    assert torch.equal(starts[0][f"backbone.bottom_up.{name}"], state[f"backbone.{name}"])
    with pytest.raises(ValueError, match="these are weights to start a training from"):
        sgr.load_model(tiny_detector_config(MODEL__SGR__IN_FEATURES="['res5']"), folder)


def test_a_head_of_other_classes_is_no_other_kind_of_model(packaged, tmp_path, caplog):
    """The rest of the head is loaded too, as from a checkpoint."""
    cfg = tiny_config(tmp_path, MODEL__SEM_SEG_HEAD__NUM_CLASSES=5, DATASETS__TRAIN="()")
    model = Trainer.build_model(cfg)
    SafeCheckpointer(model).load(str(packaged))
    expected = read_checkpoint(str(packaged))["model"]
    name = "sem_seg_head.predictor.query_embed.weight"
    assert torch.equal(model.state_dict()[name], expected[name])


def test_a_detector_of_its_own(tmp_path):
    cfg = tiny_detector_config()
    described = package_model(build_model(cfg), cfg, tmp_path / "detector")
    assert described["num_classes"] == {"MODEL.ROI_HEADS.NUM_CLASSES": 5}
    result = sgr.Predictor.load(tmp_path / "detector", score_threshold=0)(
        np.zeros((40, 50, 3), np.uint8)
    )
    assert result.thing_classes == ["disc", "box", "triangle", "star", "ring"]
    assert result.instances is not None


def test_tied_parameters(tmp_path):
    cfg = tiny_config(tmp_path)
    model = build_model(cfg)
    head = model.sem_seg_head.predictor
    head.tied = head.query_embed
    package_model(model, cfg, tmp_path / "tied")
    state = read_checkpoint(str(tmp_path / "tied"))["model"]
    assert torch.equal(
        state["sem_seg_head.predictor.tied.weight"],
        state["sem_seg_head.predictor.query_embed.weight"],
    )


def test_numbers_are_no_names(tmp_path, caplog):
    cfg = tiny_config(tmp_path, DATASETS__TEST="()")
    names = {"stuff_classes": [f"class {number}" for number in range(9)]}
    described = package_model(build_model(cfg), cfg, tmp_path / "model", classes=names)
    assert described["classes"] == {}
    assert "9 classes, whose names are not known" in (tmp_path / "model/README.md").read_text()


def test_the_card_as_the_hub_reads_it(packaged):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(packaged / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-segmentation"
    assert "semantic-segmentation" in card.data.tags
    found = {
        (each.task_name, each.metric_type): each.metric_value for each in card.data.eval_results
    }
    means = {("sem_seg", "mIoU"): 89.4, ("sem_seg", "mmin(IoU, B-Iou)"): 60.5}
    assert found == {**means, ("tokens", "S_C"): 0.43}
    assert {each.dataset_name for each in card.data.eval_results} == {"shapes_sem_seg_val"}
    assert "| tokens | S_C ↓ | 0.43 |" in card.text and "0 sky, 1 water" in card.text
    assert "Queries are the masks of a mask classifier" in card.text


def test_results_of_several_datasets_and_a_licence_of_ones_own(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "results.json").write_text(json.dumps({"a_val": RESULTS, "b_val": RESULTS}))
    (tmp_path / "terms.txt").write_text("for friends")
    more = ["--license", tmp_path / "terms.txt", "--name", "a | b"]
    main(run, tmp_path / "new", "--results", tmp_path / "results.json", *more)
    data = hub.ModelCard.load(tmp_path / "new" / "README.md").data
    assert {each.dataset_name for each in data.eval_results} == {"a_val", "b_val"}
    assert (data.license, data.license_link) == ("other", "LICENSE")
    assert (tmp_path / "new" / "LICENSE").read_text() == "for friends"


def test_results_of_an_earlier_checkpoint_are_left_out(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    os.utime(copy / "inference" / "results.json", (1, 1))
    main(copy, tmp_path / "new")
    assert "is older than" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "model.json").read_text())["metrics"] == {}
    assert "There is none." in (tmp_path / "new" / "README.md").read_text()


def test_nothing_is_overwritten_unasked(run, packaged, tmp_path):
    before = (packaged / "model.json").read_bytes()
    with pytest.raises(FileExistsError, match="has files already .* --force"):
        main(run, packaged)
    assert (packaged / "model.json").read_bytes() == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is no model folder"):
        main(run, tmp_path, "--force")
    copy = shutil.copytree(packaged, tmp_path / "copy")
    (copy / "mine.txt").touch()
    main(run, copy, "--force", "--license", "mit")
    assert "license: mit" in (copy / "README.md").read_text() and (copy / "mine.txt").exists()


def test_a_licence_of_before_goes(packaged, run, tmp_path):
    copy = shutil.copytree(packaged, tmp_path / "copy")
    (tmp_path / "terms.txt").write_text("for friends")
    main(run, copy, "--force", "--license", tmp_path / "terms.txt")
    assert (copy / "LICENSE").exists()
    main(run, copy, "--force", "--license", "apache-2.0")
    assert {file.name for file in copy.iterdir()} == set(FILES) - {"LICENSE"}


def test_a_folder_that_is_packaged_again_keeps_what_it_says(run, tmp_path):
    (tmp_path / "terms.txt").write_text("for friends")
    main(run, tmp_path / "one", "--license", tmp_path / "terms.txt", "--name", "My net")
    tool = runpy.run_path(str(CHECKOUT / "tools" / "package_model.py"))
    before = json.loads((tmp_path / "one" / "model.json").read_text())
    for output in ("one", "two"):
        arguments = ["--config-file", str(tmp_path / "one"), "--output", str(tmp_path / output)]
        tool["main"]([*arguments, "--force"])
        assert json.loads((tmp_path / output / "model.json").read_text()) == before
        assert (tmp_path / output / "LICENSE").read_text() == "for friends"


def test_random_weights_are_not_packaged(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(run, tmp_path / "new", "--weights", "")
    assert "random weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["docs/LICENCE.txt", "LICENCE.txt", "docs/LICENCE"])
def test_a_licence_that_is_no_file(run, tmp_path, name):
    with pytest.raises(ValueError, match=f"the licence '{name}' is no file that is there"):
        main(run, tmp_path / "new", "--license", name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["unknown", "apache-2.0", "cc-by-nc-4.0", "cc-by-2.5-it", "mit"])
def test_identifiers_of_licences(name):
    assert license_file(name) is None


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_folder_of_a_run_that_was_killed(packaged, run, tmp_path, monkeypatch, written):
    """While it made the files, or put them into the folder."""
    folder = tmp_path / "new"

    def killed(source, target, replace=os.replace):
        if target.parent == folder and len(list(folder.iterdir())) == 1 + written:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(package.os, "replace", killed)
        patch.setattr(package.tempfile, "TemporaryDirectory", KeptDirectory)
        with pytest.raises(KeyboardInterrupt):
            main(run, folder)
    assert len(list(folder.iterdir())) == 1 + written  # and the drafts
    main(run, folder, "--force")
    assert {file.name for file in folder.iterdir()} == set(FILES) - {"LICENSE"}


class KeptDirectory:
    """A temporary directory that nobody clears."""

    def __init__(self, dir, prefix):
        self.path = tempfile.mkdtemp(dir=dir, prefix=prefix)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        pass


def test_results_are_read_before_the_model(run, tmp_path):
    (tmp_path / "results.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for file, error in (("results.json", ValueError), ("none.json", FileNotFoundError)):
        with pytest.raises(error, match=file):
            main(tmp_path / "empty", tmp_path / "new", "--results", tmp_path / file)


@pytest.fixture
def hub(packaged, monkeypatch):
    """A hub in this process: what it is asked for."""
    asked = []

    class Hub:
        def create_repo(self, repository, **options):
            asked.append(("create", repository, options))

        def upload_folder(self, **options):
            asked.append(("upload", options))

    def snapshot_download(repository, **options):
        asked.append(("fetch", repository, options["revision"], options["allow_patterns"]))
        if repository != "me/tiny":
            raise OSError("no such model")
        return str(packaged)

    module = types.SimpleNamespace(
        HfApi=Hub, snapshot_download=snapshot_download, get_token=lambda: "a token"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_from_the_hub(hub, packaged, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="'hf-hub:me/tiny' is not fetched; .*allow_unsafe_yaml=True"
    ):
        sgr.load_model("hf-hub:me/tiny")
    assert not hub
    _, cfg = sgr.load_model("hf-hub:me/tiny@v1", allow_unsafe_yaml=True)
    assert cfg.MODEL.WEIGHTS == str(packaged)
    assert hub == [("fetch", "me/tiny", "v1", list(FILES))]
    with pytest.raises(FileNotFoundError, match="'hf-hub:me/other' cannot be fetched: OSError"):
        sgr.Predictor.load("hf-hub:me/other", allow_unsafe_yaml=True)
    monkeypatch.chdir(tmp_path)
    args = ["--eval-only", "--allow-unsafe-yaml", "--config-file", "hf-hub:me/tiny"]
    args = argument_parser().parse_args(args)
    setup_config(args)
    assert args.config_file == str(packaged / "config.yaml")


def test_to_the_hub(hub, packaged, run, tmp_path):
    assert push_model(packaged, "me/tiny") == "hf-hub:me/tiny"
    (created, uploaded) = hub
    assert created == ("create", "me/tiny", {"private": True, "exist_ok": True})
    assert uploaded[1]["folder_path"] == str(packaged)
    assert uploaded[1]["allow_patterns"] == list(FILES)
    with pytest.raises(ValueError, match="no model folder"):
        push_model(run, "me/tiny")
    main(run, tmp_path / "new", "--push", "me/tiny", "--public")
    assert hub[-2][2]["private"] is False


def test_what_cannot_go_to_the_hub_is_told_before_the_work(hub, run, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    for name in ("tiny", "me/tiny/model", "me/my model", "https://huggingface.co/me/tiny", "me/-x"):
        with pytest.raises(ValueError, match=f"'{name}' is no name of a model on the hub"):
            main(run, folder, "--push", name)
    monkeypatch.setattr(sys.modules["huggingface_hub"], "get_token", lambda: None)
    with pytest.raises(ValueError, match="no login for 'hf-hub:me/tiny': .* set HF_TOKEN"):
        main(run, folder, "--push", "me/tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        main(run, folder, "--push", "me/tiny")
    assert not folder.exists() and not hub


def test_without_the_client(packaged, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        push_model(packaged, "me/tiny")
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        sgr.load_model("hf-hub:me/tiny", allow_unsafe_yaml=True)
