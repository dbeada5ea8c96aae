"""What an explorer holds, beside what the inspection says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from explorer_data import read_script, unpack
from sgr.explorer import ExplorerModel, image_data, write_explorer, writer
from sgr.explorer.image_data import (
    coarser_regions,
    image_content,
    image_summary,
    region_content,
    shown_pixels,
)
from sgr.inspection.attention import record_attention
from sgr.inspection.image import Inspector

HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def inspected(shapes_models, shapes_records):
    """What each model does in the first image, and its attention."""
    records, metadata = shapes_records
    results, attention = {}, {}
    for one in shapes_models:
        with record_attention(one.model) as attention[one.name]:
            results[one.name] = Inspector(one.model, one.cfg, metadata)(records[0])
    return results, attention


def test_an_image_is_what_the_inspection_says(explorer, inspected, index):
    number, content = read_script(explorer / "data" / "00000.js", "explorerImage")
    assert number == 0
    results, attention = inspected
    labels = unpack(content["labels"]).astype(int) - 1
    np.testing.assert_array_equal(labels, results["SGR"].labels)
    for name, found in zip(("SGR", "GloRe", "FCN"), content["models"]):
        result = results[name]
        prediction = unpack(found["prediction"]).astype(int) - 1
        np.testing.assert_array_equal(prediction, result.prediction)
        components = unpack(found["components"]["map"]).astype(int) - 1
        np.testing.assert_array_equal(components, result.components.indices)
        kinds = {"tokens": result.tokens, "queries": result.queries}
        assert found["kinds"].keys() == {kind for kind, one in kinds.items() if one is not None}
        for kind, tokens in found["kinds"].items():
            expected = kinds[kind]
            assert tokens["stride"] == tokens["cell"] == expected.stride and tokens["input"] == [
                96,
                96,
            ]
            regions = unpack(tokens["regions"]) / 255
            np.testing.assert_allclose(regions, expected.probabilities, atol=0.51 / 255)
            for key in ("mass", "peak", "centroids", "components"):
                np.testing.assert_array_equal(unpack(tokens[key]), getattr(expected, key))
            for key in ("classes", "instances"):
                histograms = getattr(expected, key)
                values = unpack(tokens[key]["values"]) / 65535
                np.testing.assert_allclose(values, histograms.values, atol=1e-5)
                assert tokens[key]["labels"] == histograms.labels.tolist()
                np.testing.assert_array_equal(
                    unpack(tokens[key]["semantics"]), histograms.semantics
                )
                assert tokens[key]["S"] == pytest.approx(histograms.S, rel=1e-3)
    assert content["instances"]["names"][0] in {*index["classes"]} | {
        f"{name} {number}" for name in index["classes"] for number in range(1, 9)
    }


def test_the_largest_attention_is_listed(explorer, inspected):
    _, content = read_script(explorer / "data" / "00000.js", "explorerImage")
    results, attention = inspected
    assert content["models"][1]["kinds"]["tokens"]["attention"] is None  # GloRe has a graph
    for kind, key in (("tokens", "concept_regions"), ("queries", "query_regions")):
        weights = attention["SGR"][key][0]
        tokens = getattr(results["SGR"], kind)
        found = content["models"][0]["kinds"][kind]["attention"]
        used = unpack(found["tokens"])
        assert set(used) == set(range(len(tokens.mass)))  # fewer than 64
        layers, heads = weights.shape[:2]
        for layer in range(layers):
            for head in range(heads + 1):
                matrix = weights[layer].mean(0) if head == heads else weights[layer, head]
                for direction, rows in (("to", matrix), ("from", matrix.T)):
                    row = rows[int(used[2])]
                    listed = unpack(found[direction]["tokens"])[layer, head, 2].astype(int)
                    assert len(set(listed)) == 8
                    largest = row.sort(descending=True).values[:8]
                    np.testing.assert_allclose(row[listed], largest, atol=1e-7)
                    shares = unpack(found[direction]["weights"])[layer, head, 2] / 255
                    np.testing.assert_allclose(shares, largest, atol=0.51 / 255)


def test_the_index(explorer, inspected, index, shapes_records):
    results, _ = inspected
    assert index["classes"][-1] == HOSTILE
    assert [one["name"] for one in index["models"]] == ["SGR", "GloRe", "FCN"]
    assert [one["name"] for one in index["images"]][1] == f"{HOSTILE}.jpg"
    assert index["models"][2]["kinds"] == {}
    assert index["models"][0]["kinds"]["tokens"]["count"] == len(results["SGR"].tokens.mass)
    first = index["images"][0]
    for figures, result in zip(first["models"], results.values()):
        right = result.labels == result.prediction
        counted = result.labels >= 0
        assert figures["accuracy"] == pytest.approx(right[counted].mean(), rel=1e-3)
        ious = []
        for label in range(9):
            truth, guess = result.labels == label, (result.prediction == label) & counted
            if (truth | guess).any():
                pair = [int((truth & guess).sum()), int((truth | guess).sum())]
                assert [label, *pair] in figures["iou"]
                ious.append(pair[0] / pair[1])
        assert figures["miou"] == pytest.approx(np.mean(ious), rel=1e-3)
        if result.tokens is not None:
            kinds = figures["kinds"]["tokens"]
            assert kinds["S_C"] == pytest.approx(result.tokens.classes.S, rel=1e-3)
            assert kinds["active"] == result.tokens.active.sum()
    predictions = [result.prediction for result in results.values()]
    for one, other, share in first["differ"]:
        differ = (predictions[one] != predictions[other]).mean()
        assert share == pytest.approx(differ, rel=1e-3, abs=1e-9)


def test_large_images_are_shown_smaller(shapes_models, shapes_records, tmp_path):
    records, metadata = shapes_records
    write_explorer(
        tmp_path / "small", shapes_models[:1], records[:1], metadata, max_side=32, progress=False
    )
    _, content = read_script(tmp_path / "small" / "data" / "00000.js", "explorerImage")
    assert content["labels"]["shape"] == content["models"][0]["prediction"]["shape"] == [32, 32]
    with Image.open(tmp_path / "small" / "images" / "00000.jpg") as image:
        assert image.size == (32, 32)


def test_pixels_of_a_smaller_map_are_those_below_its_centres():
    rows, columns = shown_pixels((6, 10), (2, 5))
    assert rows.tolist() == [[1], [4]] and columns.tolist() == [1, 3, 5, 7, 9]


def test_images_without_ground_truth(shapes_models, shapes_records, tmp_path):
    records, _ = shapes_records
    only = [{"file_name": record["file_name"]} for record in records[:2]]
    report = write_explorer(tmp_path / "explorer", shapes_models, only, progress=False)
    assert report.images == 2
    (content,) = read_script(tmp_path / "explorer" / "data" / "index.js", "explorerIndex")
    assert len(content["classes"]) == 9 and content["images"][0]["models"][0]["miou"] is None
    _, image = read_script(tmp_path / "explorer" / "data" / "00000.js", "explorerImage")
    assert image["labels"] is None and image["models"][0]["prediction"]


def test_damaged_files_are_left_out(shapes_models, shapes_records, tmp_path):
    records, metadata = shapes_records
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    damaged = {"file_name": str(tmp_path / "broken.jpg")}
    report = write_explorer(
        tmp_path / "explorer", shapes_models[:1], [damaged, records[0]], metadata, progress=False
    )
    assert report.images == 1 and "broken.jpg" in report.problems[str(tmp_path / "broken.jpg")]
    assert report.size > 0 and report.seconds > 0
    with pytest.raises(ValueError, match="no image could be explored.*broken"):
        write_explorer(tmp_path / "none", shapes_models[:1], [damaged], metadata, progress=False)


def test_an_interruption_keeps_what_is_written(
    shapes_models, shapes_records, tmp_path, monkeypatch
):
    records, metadata = shapes_records

    def inspect(models, inspectors, record, inspect=writer._inspect):
        if record is records[2]:
            raise KeyboardInterrupt
        return inspect(models, inspectors, record)

    monkeypatch.setattr(writer, "_inspect", inspect)
    with pytest.raises(KeyboardInterrupt):
        write_explorer(tmp_path / "one", shapes_models[:1], records, metadata, progress=False)
    (content,) = read_script(tmp_path / "one" / "data" / "index.js", "explorerIndex")
    assert len(content["images"]) == 2


class TestFolder:
    @pytest.fixture
    def write(self, shapes_models, shapes_records, tmp_path):
        records, metadata = shapes_records

        def write_(folder=tmp_path / "explorer", models=shapes_models[2:], count=1, **options):
            return write_explorer(
                folder, models, records[:count], metadata, progress=False, **options
            )

        return write_

    def test_an_explorer_is_replaced(self, write, tmp_path):
        write(count=2)
        write()
        assert [path.name for path in (tmp_path / "explorer" / "images").iterdir()] == ["00000.jpg"]

    def test_other_folders_stay(self, write, tmp_path):
        (tmp_path / "photo.jpg").touch()
        with pytest.raises(ValueError, match="something else than an explorer"):
            write(tmp_path)
        with pytest.raises(ValueError, match="photo.jpg is a file"):
            write(tmp_path / "photo.jpg")

    def test_a_web_page_stays(self, write, tmp_path):
        """Its files have the names of those of an explorer."""
        for name in ("index.html", "data/index.js", "images/logo.png"):
            (tmp_path / "page" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "page" / name).write_text("const data = [];")
        with pytest.raises(ValueError, match="page holds something else than an explorer"):
            write(tmp_path / "page")
        assert (tmp_path / "page" / "images" / "logo.png").exists()

    def test_its_own_images_stay(self, write, shapes_models, shapes_records, tmp_path):
        write()
        image = tmp_path / "explorer" / "images" / "00000.jpg"
        with pytest.raises(ValueError, match="00000.jpg lies in .*explorer, which would be repla"):
            write_explorer(tmp_path / "explorer", shapes_models[2:], [{"file_name": str(image)}])
        assert image.exists()

    def test_what_cannot_be_explored(self, write, shapes_models, shapes_records):
        with pytest.raises(ValueError, match="no image"):
            write(count=0)
        with pytest.raises(ValueError, match="different names"):
            write(models=[shapes_models[2]] * 2)
        with pytest.raises(ValueError, match="max_side.*31"):
            write(max_side=31)

    def test_classes_must_be_the_same(self, shapes_models, shapes_records, tmp_path):
        records, metadata = shapes_records
        metadata = type(metadata)(stuff_classes=["one", "two"])
        with pytest.raises(ValueError, match="SGR has 9 classes, and the explorer 2"):
            write_explorer(tmp_path / "one", shapes_models, records, metadata, progress=False)
        assert not (tmp_path / "one").exists()


def test_models_put_out_the_tokens_that_they_have(shapes_models):
    asked = [one.cfg.TEST.TOKENS.ENABLED for one in shapes_models]
    assert asked == [True, True, False]
    cfg = shapes_models[0].cfg.clone()
    cfg.defrost()
    cfg.TEST.TOKENS.ENABLED, cfg.TEST.AUG.ENABLED = False, True
    again = ExplorerModel("again", shapes_models[0].model, cfg)
    assert again.cfg.TEST.TOKENS.ENABLED and not again.cfg.TEST.AUG.ENABLED
    assert shapes_models[0].model.concepts_in_output


def test_unlabelled_pixels_do_not_count(inspected):
    results, attention = inspected
    blank = {
        name: type(one)(**{**vars(one), "labels": np.full_like(one.labels, -1)})
        for name, one in results.items()
    }
    models, _ = image_summary(blank, 9)
    assert all(figures["miou"] is None and figures["iou"] == [] for figures in models)
    json.dumps(models)
    assert torch.is_tensor(attention["SGR"]["concept_regions"])
    content = image_content(blank, attention, [str(n) for n in range(9)], (96, 96))
    assert not unpack(content["labels"]).any()


def test_pixels_without_a_prediction_are_wrong(inspected):
    """Panoptic and instance results leave pixels out; the first and the last class count too."""
    one = inspected[0]["SGR"]
    labels, prediction = np.zeros((2, 96, 96), int)
    labels[48:], prediction[48:] = 8, 8
    prediction[:24] = prediction[90:] = -1
    one = type(one)(**{**vars(one), "labels": labels, "prediction": prediction})
    (figures,), _ = image_summary({"one": one}, 9)
    assert figures["iou"] == [[0, 24 * 96, 48 * 96], [8, 42 * 96, 48 * 96]]
    assert figures["accuracy"] == pytest.approx(66 / 96, rel=1e-3)


def test_fine_regions_become_coarser():
    regions = np.random.default_rng(0).random((2, 70, 129)).astype(np.float32)
    found, stride = coarser_regions(regions, 4)
    assert found.shape == (2, 18, 33) and stride == 16
    np.testing.assert_allclose(found[:, 3, 5], regions[:, 12:16, 20:24].mean(axis=(1, 2)), 1e-5)
    np.testing.assert_allclose(found[:, 0, 32], regions[:, 0:4, 128].mean(axis=1), 1e-5)
    same, stride = coarser_regions(regions[:, :64, :64], 4)
    assert stride == 4 and same.shape == (2, 64, 64)


def test_regions_of_tokens_that_are_used_least_become_coarser(monkeypatch):
    regions = np.random.default_rng(0).random((9, 32, 40)).astype(np.float32)
    order = np.array([3, 8, 0, 1, 2, 4, 5, 6, 7])
    everything = region_content(regions, order)
    assert everything["coarse"] is None and len(unpack(everything["regions"])) == 9
    monkeypatch.setattr(
        image_data, "REGION_CHARACTERS", 3 * len(everything["regions"]["data"]) // 8
    )
    found = region_content(regions, order)
    assert len(found["regions"]["data"]) <= image_data.REGION_CHARACTERS
    np.testing.assert_allclose(unpack(found["regions"]) / 255, regions[[0, 3, 8]], atol=0.51 / 255)
    coarse = found["coarse"]
    assert unpack(coarse["tokens"]).tolist() == [1, 2, 4, 5, 6, 7] and coarse["factor"] == 4
    means = regions[[1, 2, 4, 5, 6, 7]].reshape(6, 8, 4, 10, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(unpack(coarse["regions"]) / 255, means, atol=0.51 / 255)
