"""The paper's figures, of models that know nothing."""

import runpy
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.load import load_model
from tiny_model import CHECKOUT, tiny_options

SHAPES = CHECKOUT / "configs" / "shapes"
TOOL = runpy.run_path(str(CHECKOUT / "tools" / "draw_figures.py"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("weights")
    for name in ("maskformer_R50_sgr", "maskformer_R50"):
        model, _ = load_model(str(SHAPES / f"{name}.yaml"), "", *tiny_options())
        torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize(
    ("figure", "names"),
    [
        ("components", ["components_00000", "components_00003"]),
        ("tokens", ["tokens_00000", "tokens_00003"]),
        ("matching", ["matching_00000", "matching_00003"]),
        ("regions", ["regions"]),
        ("predictions", ["predictions"]),
    ],
)
def test_each_figure_is_written_twice(tiny_shapes, checkpoints, tmp_path, figure, names):
    queries = f"queries={SHAPES / 'maskformer_R50.yaml'}@{checkpoints / 'maskformer_R50.pth'}"
    config = SHAPES / "maskformer_R50_sgr.yaml"
    TOOL["main"](
        ["--figure", figure, "--images", "0", "3", "--output", str(tmp_path), "--models", queries]
        + ["--config-file", str(config)]
        + ["--weights", str(checkpoints / f"{config.stem}.pth"), *tiny_options()]
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    for name in names:
        picture = np.array(Image.open(tmp_path / f"{name}.png"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        images = list(root.iter("{http://www.w3.org/2000/svg}image"))
        assert len(images) >= {"regions": 16, "predictions": 8, "matching": 3}.get(figure, 2)
        ratio = float(root.get("width")[:-2]) / float(root.get("height")[:-2])
        assert picture.shape[1] / picture.shape[0] == pytest.approx(ratio, rel=0.02)


def test_mistakes_are_told(tiny_shapes, checkpoints, tmp_path, capsys):
    config = ["--config-file", str(SHAPES / "maskformer_R50_sgr.yaml")]
    weights = ["--weights", str(checkpoints / "maskformer_R50_sgr.pth"), *tiny_options()]
    for numbers, wrong in (("5", "5"), ("4 -1 7", "-1, 7")):
        with pytest.raises(ValueError, match=f"images 0 to 4, not {wrong}$"):
            TOOL["main"](["--figure", "tokens", "--images", *numbers.split(), *config, *weights])
    with pytest.raises(SystemExit):
        TOOL["main"](["--figure", "tokens", "--num-regions", "0", *config, *weights])
    same = ["--models", f"maskformer_R50_sgr={config[1]}@{weights[1]}"]
    with pytest.raises(ValueError, match="different names, not maskformer_R50_sgr, maskformer"):
        TOOL["main"](["--figure", "predictions", *same, *config, *weights])


@pytest.mark.parametrize("figure", ["components", "tokens", "matching", "regions"])
def test_an_image_without_a_labelled_pixel(tiny_shapes, checkpoints, tmp_path, figure):
    record = DatasetCatalog.get("shapes_sem_seg_val")[0]
    labels = np.array(Image.open(record["sem_seg_file_name"]))
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    Image.fromarray(np.full_like(labels, 255)).save(tmp_path / "labels.png")
    DatasetCatalog.register("unlabelled", lambda: [record])
    MetadataCatalog.get("unlabelled").set(
        stuff_classes=MetadataCatalog.get("shapes_sem_seg_val").stuff_classes, ignore_label=255
    )
    try:
        TOOL["main"](
            ["--figure", figure, "--dataset", "unlabelled", "--output", str(tmp_path / "out")]
            + ["--config-file", str(SHAPES / "maskformer_R50_sgr.yaml")]
            + ["--weights", str(checkpoints / "maskformer_R50_sgr.pth"), *tiny_options()]
        )
    finally:
        DatasetCatalog.remove("unlabelled")
        MetadataCatalog.remove("unlabelled")
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_images_of_equal_names(tiny_shapes, checkpoints, tmp_path):
    """Such as the frames of two videos, each in a folder of its own."""
    records = DatasetCatalog.get("shapes_sem_seg_val")[:2]
    for record, folder in zip(records, ("a", "b")):
        (tmp_path / folder).mkdir()
        shutil.copy(record["file_name"], tmp_path / folder / "1.jpg")
        record["file_name"] = str(tmp_path / folder / "1.jpg")
    DatasetCatalog.register("equal_names", lambda: records)
    MetadataCatalog.get("equal_names").set(
        stuff_classes=MetadataCatalog.get("shapes_sem_seg_val").stuff_classes, ignore_label=255
    )
    try:
        TOOL["main"](
            [
                "--figure",
                "components",
                "--dataset",
                "equal_names",
                "--output",
                str(tmp_path / "out"),
            ]
            + ["--config-file", str(SHAPES / "maskformer_R50_sgr.yaml")]
            + ["--weights", str(checkpoints / "maskformer_R50_sgr.pth"), *tiny_options()]
        )
    finally:
        DatasetCatalog.remove("equal_names")
        MetadataCatalog.remove("equal_names")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "components_a_1.png",
        "components_b_1.png",
    }
