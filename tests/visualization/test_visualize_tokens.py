"""The tool from its command line to its pictures, with a model that knows nothing."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

from sgr.engine import load_config
from sgr.inspection import pictures
from sgr.inspection.image import Inspector
from sgr.modeling.reasoning.concept_regions import ConceptRegions
from sgr.visualization import distinct_colors

TOOL = Path(__file__).parents[2] / "tools" / "visualize_tokens.py"


class RandomTokens(torch.nn.Module):
    """Six random regions of stride 16, and one class everywhere."""

    gives_labels = False

    def __init__(self, cfg):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        height, width = inputs[0]["image"].shape[-2:]
        logits = torch.randn(1, 6, -(-height // 16), -(-width // 16)) + self.bias
        scores = torch.zeros(3, inputs[0]["height"], inputs[0]["width"])
        sem_seg = scores.argmax(0).int() if self.gives_labels else scores
        return [{"sem_seg": sem_seg, "concept_regions": ConceptRegions(logits, stride=16)}]


@pytest.fixture
def dataset(scene, tmp_path):
    image, labels, _, _ = scene
    Image.fromarray(image).save(tmp_path / "street.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    polygons = [[8, 34, 28, 34, 28, 46, 8, 46], [40, 36, 70, 36, 70, 50, 40, 50]]
    record = {
        "file_name": str(tmp_path / "street.png"),
        "height": 60,
        "width": 80,
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "annotations": [{"segmentation": [polygon], "category_id": 0} for polygon in polygons],
    }
    name = f"visualize_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(
        stuff_classes=["sky", "road", "car"], thing_classes=["car"], ignore_label=255
    )
    META_ARCH_REGISTRY.register(RandomTokens)
    yield name
    META_ARCH_REGISTRY._obj_map.pop("RandomTokens")
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def panoptic(dataset, scene, tmp_path):
    """The dataset with segments, whose things are the last of the classes, and nothing else."""
    _, labels, segments, _ = scene
    ids = np.where(segments >= 0, segments + 10, labels + 1) * (labels < 255)
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "segments.png")
    (record,) = DatasetCatalog.get(dataset)
    del record["annotations"], record["sem_seg_file_name"]
    categories = {1: 0, 2: 1, 10: 2, 11: 2}
    record["pan_seg_file_name"] = str(tmp_path / "segments.png")
    record["segments_info"] = [{"id": id, "category_id": c} for id, c in categories.items()]
    MetadataCatalog.get(dataset).set(thing_dataset_id_to_contiguous_id={3: 2})
    return dataset


def test_panoptic_records(panoptic, monkeypatch):
    """Names and ground truth are those of the segments, whose categories count over all classes."""
    (record,) = DatasetCatalog.get(panoptic)
    seen = {}
    for name in ("draw_panel", "draw_token_histograms"):
        monkeypatch.setattr(pictures, name, lambda *args, **options: seen.update(options))
    cfg = load_config("", ["INPUT.MIN_SIZE_TEST", "60"])
    inspector = Inspector(RandomTokens(None), cfg, MetadataCatalog.get(panoptic))
    inspected = inspector(record), inspector.class_names, distinct_colors(3)
    pictures.draw_inspected(*inspected)
    pictures.draw_inspected_tokens(*inspected)
    assert seen["class_names"] == ["sky", "road", "car"]
    assert seen["instance_names"] == ["car 1", "car 2"]
    assert np.unique(seen["ground_truth"]).tolist() == [-1, 0, 1, 2]
    assert seen["components"].classes.tolist() == [0, 1, 2, 2]


def test_instances_are_the_ground_truth_where_there_is_no_other(dataset, scene, monkeypatch):
    _, _, segments, _ = scene
    (record,) = DatasetCatalog.get(dataset)
    del record["sem_seg_file_name"]
    seen = {}
    monkeypatch.setattr(pictures, "draw_panel", lambda *args, **options: seen.update(options))
    inspector = Inspector(RandomTokens(None), load_config(""), MetadataCatalog.get(dataset))
    pictures.draw_inspected(inspector(record), ["sky", "road", "car"], distinct_colors(3))
    assert np.unique(seen["ground_truth"]).tolist() == [-1, 2]
    assert (seen["ground_truth"][36:45, 10:26] == 2).all() and seen["ground_truth"][0, 0] == -1


@pytest.fixture
def arguments(dataset, tmp_path):
    """Of the tool, for a model that knows nothing."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RandomTokens"
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 96
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": {"bias": torch.ones(1)}}, tmp_path / "weights.pth")
    files = "--config-file", str(tmp_path / "config.yaml"), "--weights"
    return [*files, str(tmp_path / "weights.pth"), "--output", str(tmp_path / "pictures")]


@pytest.mark.parametrize("gives_labels", [False, True])
def test_pictures_are_written(dataset, arguments, tmp_path, monkeypatch, gives_labels):
    monkeypatch.setattr(RandomTokens, "gives_labels", gives_labels)
    output = tmp_path / "pictures"

    main = runpy.run_path(str(TOOL))["main"]
    main([*arguments, "--dataset", dataset, "--num-images", "3", "--num-regions", "5"])

    panel, tokens = (np.array(Image.open(output / f"street.{n}.png")) for n in ("panel", "tokens"))
    assert panel.ndim == 3 and len(np.unique(panel)) > 50
    assert tokens.ndim == 3 and len(np.unique(tokens)) > 50


def test_images_of_equal_names(dataset, arguments, tmp_path):
    """Such as the frames of two videos, each in a folder of its own."""
    (record,) = DatasetCatalog.get(dataset)
    records = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(record["file_name"], tmp_path / folder / "street.png")
        records.append({**record, "file_name": str(tmp_path / folder / "street.png")})
    DatasetCatalog.remove(dataset)
    DatasetCatalog.register(dataset, lambda: records)
    runpy.run_path(str(TOOL))["main"]([*arguments, "--dataset", dataset])
    found = {str(file.relative_to(tmp_path)) for file in (tmp_path / "pictures").rglob("*.png")}
    assert found == {
        f"pictures/{folder}/street.{kind}.png"
        for folder in ("a", "b")
        for kind in ("panel", "tokens")
    }


def test_unknown_dataset(arguments):
    main = runpy.run_path(str(TOOL))["main"]
    with pytest.raises(ValueError, match="shapes_sem_seg_vall'.*did you mean 'shapes_sem_seg_val'"):
        main([*arguments, "--dataset", "shapes_sem_seg_vall"])


def test_numbers_below_one_are_refused(capsys):
    parse_args = runpy.run_path(str(TOOL))["parse_args"]
    with pytest.raises(SystemExit):
        parse_args(["--config-file", "x.yaml", "--num-images", "0"])
    assert "--num-images: must be at least 1" in capsys.readouterr().err
