"""train_net.py as its users call it."""

import importlib.util
import json

import pytest

from sgr.engine import argument_parser
from tiny_model import CHECKOUT, CONFIG, tiny_options


@pytest.fixture(scope="module")
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", CHECKOUT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(folder, *flags, **options):
    return argument_parser().parse_args(
        ["--config-file", str(CONFIG), *flags, *tiny_options(OUTPUT_DIR=folder, **options)]
    )


def test_train_resume_and_evaluate(train_net, tiny_shapes, tmp_path):
    train_net.main(arguments(tmp_path, SOLVER__MAX_ITER=3))
    assert (tmp_path / "config.yaml").is_file() and (tmp_path / "log.txt").is_file()

    train_net.main(arguments(tmp_path, "--resume", SOLVER__MAX_ITER=5))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [2, 4]

    weights = tmp_path / "model_final.pth"
    results = train_net.main(arguments(tmp_path, "--eval-only", MODEL__WEIGHTS=weights))
    assert 0 <= results["sem_seg"]["mIoU"] <= 100 and results["tokens"]["images_C"] == 5

    explorer = tmp_path / "explorer"
    (tmp_path / "last_checkpoint").unlink()  # as after a loss: --resume finds the newest one itself
    train_net.main(arguments(tmp_path, "--eval-only", "--resume", "--explorer", str(explorer)))
    assert (explorer / "data" / "00004.js").is_file() and (explorer / "index.html").is_file()

    # The config that a run has written starts the next one.
    again = argument_parser().parse_args(
        [
            "--config-file",
            str(tmp_path / "config.yaml"),
            "--eval-only",
            "MODEL.WEIGHTS",
            str(weights),
        ]
    )
    assert train_net.main(again)["sem_seg"]["mIoU"] == results["sem_seg"]["mIoU"]


def test_an_explorer_needs_a_trained_model(train_net, tmp_path):
    with pytest.raises(ValueError, match="add --eval-only"):
        train_net.main(arguments(tmp_path, "--explorer", str(tmp_path / "explorer")))


def test_a_wrong_folder_for_the_explorer_is_found_before_the_evaluation(train_net, tmp_path):
    (tmp_path / "photo.jpg").touch()
    args = arguments(tmp_path / "out", "--eval-only", "--explorer", str(tmp_path))
    with pytest.raises(ValueError, match="holds something else than an explorer"):
        train_net.main(args)
    assert not (tmp_path / "out").exists()
