"""Figures come out as RGB pictures with something on them, and no text over other text."""

import itertools
import json

import cv2
import numpy as np
import pytest

from sgr.visualization import (
    HIGHER_IS_BETTER,
    Sample,
    draw_comparison,
    draw_confusion_matrix,
    draw_contact_sheet,
    draw_panel,
    draw_segments,
    draw_token_histograms,
    draw_training_curves,
    higher_is_better,
    metric_title,
    number_names,
    read_metrics,
)
from sgr.visualization.figure import new_figure, picture_axes
from sgr.visualization.segments import _place, show_segments

CLASSES = ["sky", "road", "car"]


def is_picture(picture):
    return (
        picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
        and len(np.unique(picture)) > 50
    )


def test_names_are_numbered_where_they_repeat():
    assert number_names(["car", "road", "car"]) == ["car 1", "road", "car 2"]


def test_segments(scene):
    image, _, segments, names = scene
    picture = draw_segments(image, segments, names, width=400)
    assert is_picture(picture)
    assert picture.shape[1] == 400 and abs(picture.shape[0] - 300) <= 1
    assert is_picture(draw_segments(image, np.full_like(segments, -1), []))


def test_segment_names_do_not_overlap(scene):
    image, *_ = scene
    # 120 segments of 6 x 6 pixels: there is room for some of the names only.
    y, x = np.mgrid[:60, :80]
    segments = y // 6 * 14 + x // 6
    names = [f"segment {index}" for index in range(140)]
    figure = new_figure(4, 3)
    axes = picture_axes(figure, image, 0, 0, 4)
    show_segments(axes, segments, names)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert 5 < len(boxes) < 140
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent(renderer)
    assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)


def literal_places(axes, indices, names):
    """What show_segments writes, from a map of the whole picture for each segment."""
    areas = [(indices == index).sum() for index in range(len(names))]
    taken = []
    for index in sorted(range(len(names)), key=lambda index: -areas[index]):
        mask = np.pad(indices == index, 1).astype(np.uint8)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        for size in (8, 6.5):
            box = _place(axes, depth.copy(), (0, 0), names[index], size, taken)
            if box is not None:
                taken.append(box)
                break


@pytest.mark.parametrize("kind", ["blobs", "stripes", "one", "none"])
def test_segments_are_named_as_by_whole_maps(scene, kind):
    image, *_ = scene
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:60, :80]
    if kind == "blobs":  # of any shape, beside pixels of none and numbers without a name
        centres = rng.integers(0, [60, 80], (12, 2))
        distances = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
        indices = distances.argmin(axis=0) - 1
    elif kind == "stripes":
        indices = x // 2 % 4
    else:
        indices = np.where((y > 4) & (x < 70), 0, -1) if kind == "one" else np.full((60, 80), -1)
    indices = indices.astype(np.int16)
    names = [f"segment {index}" for index in range(min(indices.max() + 1, 9))]
    written = []
    for write in (literal_places, show_segments):
        axes = picture_axes(new_figure(4, 3), image, 0, 0, 4)
        write(axes, indices, names)
        written.append([(t.get_text(), t.get_position(), t.get_fontsize()) for t in axes.texts])
    assert written[0] == written[1]
    assert len(written[0]) == {"blobs": 9, "stripes": 2, "one": 1, "none": 0}[kind]


def test_panel(scene):
    image, labels, segments, _ = scene
    regions = np.random.default_rng(1).random((5, 60, 80)).astype(np.float32)
    everything = draw_panel(
        image,
        class_names=CLASSES,
        ground_truth=labels,
        components=(segments, np.array([2, 2])),
        prediction=np.zeros((60, 80), np.int64),
        regions=regions,
        region_names=[f"concept {k}\ncar 80 %" for k in range(5)],
    )
    only_image = draw_panel(image, class_names=CLASSES)
    assert is_picture(everything) and is_picture(only_image)
    assert everything.shape[0] > 2 * only_image.shape[0]
    assert everything.shape[1] > 3 * only_image.shape[1]


def test_a_panel_with_errors(scene, monkeypatch):
    image, labels, *_ = scene
    monkeypatch.setattr("sgr.visualization.panel.render", lambda figure: figure)
    prediction = np.where(labels == 255, 0, labels)
    prediction[:15] = 1
    for errors, title in ((False, "prediction"), (True, "errors: ")):
        figure = draw_panel(
            image, class_names=CLASSES, ground_truth=labels, prediction=prediction, errors=errors
        )
        assert figure.axes[-1].get_title().startswith(title)
    wrong = ((labels < 3) & (prediction != labels)).sum() / (labels < 3).sum()
    assert figure.axes[-1].get_title() == f"errors: {100 * wrong:.1f} % of the labelled pixels"


def test_a_panel_of_unlike_sizes_is_an_error(scene):
    image, labels, *_ = scene
    with pytest.raises(ValueError, match="cannot be laid over"):
        draw_panel(image, class_names=CLASSES, prediction=labels[:30])
    with pytest.raises(ValueError, match="2 regions have 1 names"):
        draw_panel(image, class_names=CLASSES, regions=np.zeros((2, 60, 80)), region_names=["a"])


def test_token_histograms(scene):
    image, _, segments, names = scene
    regions = np.random.default_rng(2).random((2, 60, 80))
    class_histograms = np.array([[0.1, 0.2, 0.7], [0, 0, 0]])
    by_class = {"class_histograms": class_histograms, "class_names": CLASSES}
    by_instance = {
        "instance_map": segments,
        "instance_histograms": np.array([[0.5, 0.5], [1, 0]]),
        "instance_names": names,
    }
    sizes = []
    for columns in (by_class, by_instance, {**by_class, **by_instance}):
        picture = draw_token_histograms(image, regions, ["concept 1", "concept 2"], **columns)
        assert is_picture(picture)
        sizes.append(picture.shape[1])
    assert sizes[0] < sizes[1] < sizes[2]


def test_token_histograms_without_those_of_instances(scene):
    """A map of instances is shown all the same; names alone take no room."""
    image, _, segments, names = scene
    regions = np.random.default_rng(2).random((2, 60, 80))
    given = [{}, {"instance_names": names}, {"instance_names": names, "instance_map": segments}]
    drawn = [draw_token_histograms(image, regions, ["1", "2"], **options) for options in given]
    assert drawn[0].shape == drawn[1].shape and drawn[1].shape[1] < drawn[2].shape[1]
    assert is_picture(drawn[2])


def test_the_weight_on_instances_is_in_the_title(scene, monkeypatch):
    image, _, segments, names = scene
    monkeypatch.setattr("sgr.visualization.histograms.render", lambda figure: figure)
    figure = draw_token_histograms(
        image,
        np.zeros((1, 60, 80)),
        ["concept"],
        instance_map=segments,
        instance_histograms=np.array([[0.5, 0.5]]),
        instance_names=names,
        instance_shares=np.array([0.034]),
    )
    assert figure.axes[-1].get_title() == "instances (3 % of the weight), entropy 0.69"


def test_many_bins_are_added_up(scene):
    image, *_ = scene
    picture = draw_token_histograms(
        image,
        np.zeros((1, 60, 80)),
        ["concept"],
        class_histograms=np.full((1, 40), 1 / 40),
        class_names=[f"class {index}" for index in range(40)],
    )
    assert is_picture(picture)


def write_metrics(folder, entries):
    folder.mkdir()
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, entries)) + "\n")
    return folder


def test_metrics_of_a_resumed_training(tmp_path):
    run = write_metrics(
        tmp_path / "run",
        [
            {"iteration": 19, "total_loss": 3.0},
            {"iteration": 39, "total_loss": 2.5, "sem_seg/mIoU": 20.0, "note": "text"},
            {"iteration": 39, "total_loss": 2.0},
            {"iteration": 29, "total_loss": 2.7},
        ],
    )
    metrics = read_metrics(run)
    assert set(metrics) == {"total_loss", "sem_seg/mIoU"}
    iterations, values = metrics["total_loss"]
    assert iterations.tolist() == [19, 29, 39] and values.tolist() == [3.0, 2.7, 2.0]
    assert read_metrics(run / "metrics.json")["sem_seg/mIoU"][1].tolist() == [20.0]


def test_damaged_lines_of_metrics(tmp_path, caplog):
    run = write_metrics(tmp_path / "run", [{"iteration": 19, "total_loss": 3.0}])
    with (run / "metrics.json").open("a") as file:
        file.write('{"iteration": 39, "tot\n\n5\n{"iteration": 59, "total_loss": 1.0}\n')
    assert read_metrics(run)["total_loss"][0].tolist() == [19, 59]
    assert [f"{run / 'metrics.json'}, line {n} is damaged" for n in (2, 4)] == caplog.messages


def test_names_are_no_formulas(scene, tmp_path):
    image, labels, segments, _ = scene
    names = ["a$_$1", "$", r"$\frac{$"]
    colors = np.full((3, 3), 200, np.uint8)
    values = {"sem_seg/mIoU": [1.0]}
    run = write_metrics(tmp_path / "run", [{"iteration": 1, "total_loss": 2.0}])
    regions, shares = np.ones((3, 60, 80)) / 3, np.ones((3, 3)) / 3
    options = {"class_names": names}
    pictures = [
        draw_segments(image, segments, names),
        draw_panel(image, ground_truth=labels, regions=regions, region_names=names, **options),
        draw_token_histograms(image, regions, names, class_histograms=shares, **options),
        draw_training_curves({name: run for name in names}, ["total_loss"]),
        draw_comparison({name: values for name in names}, ["sem_seg/mIoU"]),
        draw_contact_sheet([Sample(names[0], image, labels)], class_colors=colors, **options),
        draw_confusion_matrix(np.eye(3, dtype=np.int64), names),
    ]
    assert all(map(is_picture, pictures))


def test_training_curves(tmp_path):
    long = [{"iteration": i, "total_loss": 3 - i / 100, "sem_seg/mIoU": i} for i in range(100)]
    runs = {
        "FCN": write_metrics(tmp_path / "fcn", [{"iteration": 5, "total_loss": 2.0}]),
        "SGR": write_metrics(tmp_path / "sgr", long),
    }
    picture = draw_training_curves(runs, ["total_loss", "sem_seg/mIoU"])
    assert is_picture(picture)
    one, three, five = (draw_training_curves(runs, n * ["total_loss"]).shape for n in (1, 3, 5))
    assert one[0] == three[0] and three[1] == five[1] and one[0] < five[0] < 2 * one[0] + 1
    with pytest.raises(ValueError, match="no training has the metric 'tokens/S_C'.*total_loss"):
        draw_training_curves(runs)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        draw_training_curves({"x": tmp_path / "nowhere"})


def test_comparison_of_models():
    values = np.random.default_rng(3).random((15, 2, 3)).tolist()
    models = {
        f"model {index}": {"sem_seg/mIoU": miou, "tokens/S_C": s_c}
        for index, (miou, s_c) in enumerate(values)
    }
    models["model 3"] = {}  # nothing of it has finished
    models["model 4"] = {"sem_seg/mIoU": [0.5]}
    metrics = ["sem_seg/mIoU", "tokens/S_C"]
    picture = draw_comparison(models, metrics)
    assert is_picture(picture)
    fewer = draw_comparison({name: models[name] for name in list(models)[:5]}, metrics)
    assert picture.shape[0] > 2 * fewer.shape[0]
    narrow = draw_comparison({"a": {"sem_seg/mIoU": [1.0]}}, metrics[:1])
    named = draw_comparison({"a long name": {"sem_seg/mIoU": [1.0]}}, metrics[:1])
    assert is_picture(narrow) and picture.shape[1] > narrow.shape[1]
    assert named.shape[1] > narrow.shape[1] and named.shape[0] == narrow.shape[0]


def test_comparison_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no metric to draw"):
        draw_comparison({"a": {"sem_seg/mIoU": [1.0]}}, [])
    with pytest.raises(ValueError, match="no model has a value of the metric 'tokens/S_C'"):
        draw_comparison({"a": {"tokens/S_C": []}, "b": {}}, ["tokens/S_C"])


def test_comparison_shows_mean_and_spread(monkeypatch):
    import sgr.visualization.comparison as comparison

    figures = []
    monkeypatch.setattr(comparison, "render", figures.append)
    metric = "sem_seg/mIoU"
    draw_comparison({"a": {metric: [1.0, 3.0, 5.0]}, "b": {metric: [2.0]}}, [metric])
    (axes,) = figures[0].axes
    band, mean, dots, only_mean, only_dot = (line.get_xdata().tolist() for line in axes.lines)
    assert band == [1.0, 5.0] and mean == [3.0] and dots == [1.0, 3.0, 5.0]  # sqrt(8 / 2) = 2
    assert only_mean == only_dot == [2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.yaxis_inverted()  # the first is on top


def test_which_way_metrics_are_better(monkeypatch):
    higher = "sem_seg/mIoU sem_seg/IoU-car sem_seg/pACC bbox/AP segm/AP50 bbox/AP-dog segm/APl"
    higher += " sem_seg/iIoU_sup sem_seg/IoU panoptic_seg/PQ_th panoptic_seg/RQ"
    for metric in f"{higher} tokens/D_C queries/D_I".split():
        assert higher_is_better(metric) is True, metric
    for metric in ("tokens/S_C", "queries/S_I", "tokens/S_C_active", "val/tokens/S_C"):
        assert higher_is_better(metric) is False, metric
    for metric in ("total_loss", "tokens/active_tokens", "tokens/images_C", "sem_seg/", "XAP"):
        assert higher_is_better(metric) is None, metric
    monkeypatch.setitem(HIGHER_IS_BETTER, "XAP", True)
    assert higher_is_better("other/XAP") is True


def test_titles_of_metrics():
    assert metric_title("tokens/S_C") == "$S_C$ (lower is better)"
    assert metric_title("sem_seg/IoU-car") == "sem_seg/IoU-car"
