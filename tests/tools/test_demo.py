"""The tool from its command line to its pictures, with models that know nothing."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from PIL import Image

from sgr.engine import load_config
from sgr.inference import BatchPredictor, join_results
from tiny_detector import tiny_detector_config
from tiny_model import CHECKOUT, tiny_config, tiny_options

SHAPES = CHECKOUT / "configs" / "shapes"
ALL_ON = {f"MODEL__MASK_FORMER__TEST__{kind}_ON": True for kind in ("PANOPTIC", "INSTANCE")}
NORMS = {"MODEL__RESNETS__NORM": "BN", "MODEL__SEM_SEG_HEAD__NORM": "BN"}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("demo", CHECKOUT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Config files with the weights of random models, by the kind of their output."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    configs = {
        "per-pixel": tiny_config(root, SHAPES / "fcn_R50_sgr.yaml", **NORMS),
        "semantic": tiny_config(root, SHAPES / "maskformer_R50_sgr.yaml", **NORMS),
        "panoptic": tiny_config(root, SHAPES / "mask2former_R50_sgr.yaml", **NORMS, **ALL_ON),
        "instance": tiny_config(
            root,
            SHAPES / "mask2former_R50_sgr.yaml",
            MODEL__MASK_FORMER__TEST__INSTANCE_ON=True,
            **NORMS,
        ),
        "detector": tiny_detector_config(),
        "detectron2's": tiny_detector_config(MODEL__META_ARCHITECTURE="GeneralizedRCNN"),
    }
    for kind, cfg in configs.items():
        cfg.MODEL.WEIGHTS = str(root / f"{kind}.pth")
        torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        (root / f"{kind}.yaml").write_text(cfg.dump())
    return lambda kind: ["--config-file", str(root / f"{kind}.yaml")]


@pytest.fixture
def photos(tmp_path):
    """A folder with images of all modes, of unequal sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def save(name, *shape):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / name)

    save("colour.jpg", 50, 70, 3)
    save("grey.png", 64, 40)
    save("transparent.png", 48, 48, 4)
    save("größe 東京.tif", 30, 90, 3)
    return folder


def sizes(folder):
    """Of the pictures in a folder, by their names."""
    return {path.name: Image.open(path).size for path in folder.iterdir() if path.is_file()}


def beside(width, height):
    """The size of a picture with the image beside it."""
    return 2 * width + 4, height


EXPECTED = {
    "colour.jpg": beside(70, 50),
    "grey.png": beside(40, 64),
    "transparent.png": beside(48, 48),
    "größe 東京.png": beside(90, 30),
}
STEMS = {name.partition(".")[0] for name in EXPECTED}


@pytest.mark.parametrize(
    "kind", ["per-pixel", "semantic", "panoptic", "instance", "detector", "detectron2's"]
)
def test_every_kind_of_model(tool, models, photos, tmp_path, capsys, kind):
    status = tool.main(
        [*models(kind), "--input", str(photos), "--output", str(tmp_path / "out")]
        + ["--batch-size", "3", "--confidence-threshold", "0"]
    )
    assert status == 0
    assert sizes(tmp_path / "out") == EXPECTED
    assert "4 of 4 images" in capsys.readouterr().out
    for name in ("grey.png", "transparent.png"):
        before = np.array(Image.open(photos / name).convert("RGB"))
        picture = np.array(Image.open(tmp_path / "out" / name))
        width = before.shape[1]
        np.testing.assert_array_equal(picture[:, :width], before)
        assert (picture[:, -width:] != before).any()
    results = {"panoptic": ["labels", "instances", "panoptic"], "instance": ["labels", "instances"]}
    written = results.get(kind, ["instances" if "detect" in kind else "labels"])
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {*written}
    for folder in written:
        assert {path.stem for path in (tmp_path / "out" / folder).iterdir()} == STEMS


def test_resume_predicts_what_has_no_picture(tool, models, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*models("per-pixel"), "--input", str(photos), "--output", str(out)]
    assert tool.main(arguments) == 0
    (out / "grey.png").unlink()
    (out / "labels" / "grey.png").unlink()
    (out / "colour.jpg").write_bytes(b"there")
    assert tool.main([*arguments, "--resume"]) == 0
    assert "4 of 4 images, 3 of them before" in capsys.readouterr().out
    assert (out / "colour.jpg").read_bytes() == b"there"
    assert Image.open(out / "labels" / "grey.png").size == (40, 64)
    assert tool.main(arguments) == 0
    assert sizes(out) == EXPECTED


def test_resume_knows_what_a_picture_was_made_from(tool, models, photos, tmp_path, capsys):
    """Names of results depend on the other files: a.png was the picture of a.tif."""
    (tmp_path / "in").mkdir()
    for name, size in (("a.tif", (40, 64)), ("b.png", (50, 30)), ("c.jpg", (33, 22))):
        Image.new("RGB", size).save(tmp_path / "in" / name)
    out = tmp_path / "out"
    arguments = [*models("per-pixel"), "--input", str(tmp_path / "in"), "--output", str(out)]
    assert tool.main([*arguments, "--resume"]) == 0
    Image.new("RGB", (70, 50)).save(tmp_path / "in" / "a.gif")
    Image.new("RGB", (20, 60)).save(tmp_path / "in" / "b.jpg")  # takes labels/b.png
    assert tool.main([*arguments, "--resume"]) == 0
    assert "5 of 5 images, 1 of them before" in capsys.readouterr().out
    expected = {"a": (70, 50), "a_2": (40, 64), "b": (20, 60), "b_2": (50, 30), "c": (33, 22)}
    labels = {f"{stem}.png": size for stem, size in expected.items()}
    assert sizes(out / "labels") == labels
    pictures = {"a.png": "a", "a_2.png": "a_2", "b.jpg": "b", "b.png": "b_2", "c.jpg": "c"}
    assert sizes(out) == {name: beside(*expected[stem]) for name, stem in pictures.items()}
    assert tool.main([*arguments, "--resume"]) == 0
    assert "5 of 5 images, 5 of them before" in capsys.readouterr().out


def test_two_processes_share_the_images(models, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(CHECKOUT / "tools" / "demo.py")]
    command += [*models("panoptic"), "--input", str(photos), "--output", str(tmp_path / "out")]
    environment = {
        **os.environ,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
    }
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (first, errors), (second, _) = [process.communicate(timeout=200) for process in processes]
    # The second one has its share, and says nothing; the first one tells about all.
    assert [process.returncode for process in processes] == [1, 0], errors
    assert "4 of 5 images" in first and "images" not in second
    assert "1 failed:" in errors and "broken.jpg" in errors
    assert sizes(tmp_path / "out") == EXPECTED
    instances, panoptic = join_results(tmp_path / "out")
    assert len(json.loads(panoptic.read_text())["images"]) == 4
    assert instances.name == "instances.json"


def test_an_explorer_beside(tool, models, photos, tmp_path):
    folder = tmp_path / "explorer"
    command = ["--input", str(photos), "--output", str(tmp_path / "out")]
    assert tool.main([*command, "--explorer", str(folder), *models("semantic")]) == 0
    assert len(list((folder / "images").iterdir())) == len(list((tmp_path / "out").glob("*.*")))


def test_no_explorer_where_no_image_can_be_predicted(tool, models, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    command = ["--input", str(tmp_path / "broken.jpg"), "--output", str(tmp_path / "out")]
    explorer = tmp_path / "explorer"
    assert tool.main([*command, "--explorer", str(explorer), *models("semantic")]) == 1
    assert "1 failed:" in capsys.readouterr().err and not explorer.exists()


def test_results_of_equal_stems(tool, models, photos, tmp_path):
    shutil.copy(photos / "grey.png", photos / "colour.png")
    arguments = [*models("per-pixel"), "--input", str(photos), "--output", str(tmp_path / "out")]
    assert tool.main(arguments) == 0
    labels = sizes(tmp_path / "out" / "labels")
    assert labels["colour.png"] == (70, 50) and labels["colour_2.png"] == (40, 64)
    assert {"colour.jpg", "colour.png"} <= sizes(tmp_path / "out").keys()


@pytest.mark.parametrize("kind", ["per-pixel", "panoptic", "detector"])
def test_regions_beside(tool, models, photos, tmp_path, kind):
    arguments = [*models(kind), "--input", str(photos / "*.png"), "--batch-size", "2"]
    arguments += ["--output", str(tmp_path / "out"), "--regions", "3"]
    assert tool.main(arguments) == 0
    assert {name: size[1] for name, size in sizes(tmp_path / "out").items()} == {
        "grey.png": 360,
        "transparent.png": 360,
    }
    # The picture at its left, and two columns of half its size.
    assert 720 <= sizes(tmp_path / "out")["transparent.png"][0] <= 740


def test_broken_files_are_reported_and_skipped(tool, models, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "colour.jpg").read_bytes()[:300])
    (photos / "empty.png").touch()
    Image.new("RGB", (5000, 1)).save(photos / "line.png")
    Image.new("RGB", (2, 60)).save(photos / "strip.png")  # refused by Visualizer
    status = tool.main(
        [*models("semantic"), "--input", str(photos), str(tmp_path / "none.png")]
        + ["--output", str(tmp_path / "out"), "--batch-size", "2"]
        + ["--opts", "INPUT.MAX_SIZE_TEST", "200"]
    )
    assert status == 1
    assert sizes(tmp_path / "out") == {**EXPECTED, "line.png": (10004, 1)}
    assert sizes(tmp_path / "out" / "labels")["strip.png"] == (2, 60)
    captured = capsys.readouterr()
    assert "5 of 9 images" in captured.out
    summary = captured.err[captured.err.index("4 failed:") :]
    for name in ("broken.jpg", "empty.png", "strip.png"):
        assert f"{photos / name}: " in summary
    assert f"{tmp_path / 'none.png'}: no such file" in summary


def test_an_image_that_the_model_cannot_take_does_not_spoil_its_batch(
    tool, models, photos, tmp_path, monkeypatch, capsys
):
    predict = BatchPredictor.predict

    def out_of_memory(self, inputs):
        if any(each["height"] == 64 for each in inputs):
            raise RuntimeError("out of memory\nand where")
        return predict(self, inputs)

    monkeypatch.setattr(BatchPredictor, "predict", out_of_memory)
    arguments = [*models("per-pixel"), "--input", str(photos), "--batch-size", "4"]
    assert tool.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert sizes(tmp_path / "out").keys() == EXPECTED.keys() - {"grey.png"}
    assert f"{photos / 'grey.png'}: out of memory\n" in capsys.readouterr().err


def test_the_outputs_name_and_equal_names(tool, models, photos, tmp_path):
    one = [*models("per-pixel"), "--input", str(photos / "grey.png")]
    assert tool.main([*one, "--output", str(tmp_path / "new" / "one.jpg")]) == 0
    assert sizes(tmp_path / "new") == {"one.jpg": beside(40, 64)}
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (33, 44)).save(other / "grey.png")
    assert tool.main([*one, str(other), "--output", str(tmp_path / "out")]) == 0
    assert sizes(tmp_path / "out" / "labels" / "other") == {"grey.png": (33, 44)}
    assert sizes(tmp_path / "out" / "photos") == {"grey.png": beside(40, 64)}
    assert sizes(tmp_path / "out" / "other") == {"grey.png": beside(33, 44)}


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this build of OpenCV writes no videos")
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    return path


def frames(path):
    """Their number, the frames per second, and the size of the last one."""
    capture = cv2.VideoCapture(str(path))
    count, fps, shape = 0, capture.get(cv2.CAP_PROP_FPS), None
    while (frame := capture.read()[1]) is not None:
        count, shape = count + 1, frame.shape[:2]
    return count, fps, shape


@pytest.mark.parametrize("kind", ["semantic", "detector"])
@pytest.mark.parametrize("regions", [0, 3])
def test_video(tool, models, video, tmp_path, kind, regions):
    result = tmp_path / "out" / "predicted.mp4"
    status = tool.main(
        [*models(kind), "--video-input", str(video), "--output", str(result)]
        + ["--batch-size", "2", "--regions", str(regions), "--confidence-threshold", "0"]
    )
    assert status == 0
    count, fps, shape = frames(result)
    assert count == 5 and fps == pytest.approx(10)
    assert shape == (360, 962) if regions else (48, 64)


def test_videos_keep_their_concepts(tool):
    drawer = tool.VideoDrawer(Metadata(), 0.5, 3)
    chosen, shown = iter([[1], [2]]), []
    module = {
        "draw_output": lambda *args, **options: None,
        "choose_concepts": lambda output, count: next(chosen),
        "draw_output_regions": lambda *args, concepts, **options: shown.append(concepts),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, function in module.items():
            patch.setattr(tool, name, function)
        for _ in range(2):
            drawer(None, {"image": torch.zeros(3, 4, 4)}, {})
    assert shown == [[1], [1]]


def test_broken_videos(tool, models, video, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.mp4").write_text("text")
    check = tool.VideoReader.check_end

    def ends_early(reader):
        reader.num_frames = 9
        check(reader)

    monkeypatch.setattr(tool.VideoReader, "check_end", ends_early)
    arguments = [*models("per-pixel"), "--output", str(tmp_path / "out"), "--batch-size", "2"]
    assert tool.main([*arguments, "--video-input", str(tmp_path / "text.mp4"), str(video)]) == 1
    assert frames(tmp_path / "out" / "street.avi")[0] == 5  # what there was
    captured = capsys.readouterr()
    assert "0 of 2 videos" in captured.out
    assert "text.mp4 cannot be opened" in captured.err
    assert "street.avi ends early, after 5 of 9 frames" in captured.err


@pytest.fixture
def configs(tool, monkeypatch):
    """The configs that models are loaded with."""
    found = []

    monkeypatch.setattr(
        tool.Predictor, "__init__", lambda self, model, cfg, **options: found.append(cfg)
    )
    return found


@pytest.mark.parametrize("before", [[], ["--opts"]])
def test_options_change_the_config(tool, models, photos, tmp_path, configs, before):
    args = tool.parse_args(
        [*models("semantic"), "--input", str(photos), "--output", str(tmp_path), *before]
        + ["INPUT.MIN_SIZE_TEST", "32"]
    )
    tool.load_predictor(args)
    assert configs[0].INPUT.MIN_SIZE_TEST == 32
    assert configs[0].MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT == "labels"
    assert not configs[0].TEST.TOKENS.ENABLED


def test_the_threshold_saves_work_but_options_come_last(tool, models, photos, tmp_path, configs):
    arguments = [*models("detector"), "--input", str(photos), "--output", str(tmp_path)]
    arguments += ["--confidence-threshold", "0.7"]
    tool.load_predictor(tool.parse_args(arguments))
    assert configs[0].MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.7
    weights = shutil.copy(configs[0].MODEL.WEIGHTS, tmp_path / "x.pth")
    arguments += ["--weights", str(weights), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.8"]
    tool.load_predictor(tool.parse_args(arguments))
    assert configs[1].MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.8
    assert configs[1].MODEL.WEIGHTS == str(weights)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "{photos}"], "the following arguments are required: --output"),
        (["--output", "out"], "one of the arguments --input --video-input is required"),
        (["--input", "{photos}/*.gif", "--output", "out"], "there is nothing to read"),
        (["--input", "{photos}", "--output", "{photos}"], "would overwrite the input"),
        (
            ["--input", "{photos}/labels", "{photos}/grey.png", "--output", "{photos}"],
            "labels/grey.png would overwrite the input",
        ),
        (["--input", "{photos}", "--output", "{photos}/grey.png/x.png"], "need a folder"),
        (
            ["--input", "{photos}/grey.png", "--output", "{photos}/grey.png"],
            "would overwrite the input",
        ),
        (["--input", "{photos}", "--output", "{tool}"], "neither a folder nor a file with .jpg"),
        (
            ["--input", "{photos}", "MODEL.WEIGHTS", "x", "--output", "out"],
            "MODEL.WEIGHTS looks like a key of the config; put --opts before it",
        ),
        (["--confidence-threshold", "1.5"], "--confidence-threshold must be in"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, not 0"),
        (["--regions", "-1"], "--regions: must be at least 0, not -1"),
        (["--explorer", "{photos}"], "photos holds something else than an explorer"),
        (
            ["--input", "{photos}", "--output", "new/pictures", "--explorer", "new"],
            "--output new/pictures lies in the folder of --explorer",
        ),
        (
            ["--input", "{photos}/*.png", "{photos}/labels/grey.png", "--output", "new"],
            "new/labels/grey.png would be the picture of one file and hold results of another",
        ),
    ],
)
def test_mistakes_are_told(tool, photos, capsys, arguments, message):
    (photos / "labels").mkdir()
    shutil.copy(photos / "grey.png", photos / "labels" / "grey.png")
    arguments = [each.format(photos=photos, tool=tool.__file__) for each in arguments]
    if "required" not in message and "--output" not in arguments:
        arguments += ["--input", str(photos), "--output", "out"]
    with pytest.raises(SystemExit) as error:
        tool.parse_args(["--config-file", "x.yaml", *arguments])
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_videos_are_no_images(tool, video, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x.yaml", "--input", str(video), "--output", "out"])
    assert "use --video-input instead of --input" in capsys.readouterr().err


def test_weights_are_needed(tool, photos, tmp_path):
    arguments = ["--config-file", str(SHAPES / "maskformer_R50_sgr.yaml"), "--input", str(photos)]
    with pytest.raises(ValueError, match="there are no weights"):
        tool.main([*arguments, "--output", str(tmp_path / "out"), *tiny_options()])
    assert load_config(arguments[1]).MODEL.WEIGHTS == ""


def test_real_images(tool, models, shared, tmp_path):
    folder = shared / "data" / "coco_mini" / "val2017"
    if not folder.is_dir():
        pytest.skip("no COCO images")
    paths = sorted(folder.iterdir())[:3]
    arguments = [*models("detector"), "--input", *map(str, paths), "--batch-size", "3"]
    assert tool.main([*arguments, "--output", str(tmp_path)]) == 0
    assert sizes(tmp_path) == {path.name: beside(*Image.open(path).size) for path in paths}
