"""Differences of mIoU, tested by resampling the images."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tiny_model import CHECKOUT


@pytest.fixture(scope="module")
def bootstrap():
    path = list(sys.path)
    sys.path.insert(0, str(CHECKOUT / "tools"))
    yield importlib.import_module("experiments.bootstrap")
    sys.path[:] = path


def counts(bootstrap, quality, images=30, classes=3, seed=0):
    """Images of 100 pixels in each class, of which a share about ``quality`` is right."""
    rng = np.random.default_rng(seed)
    truth = np.full((images, classes), 100)
    right = np.clip(100 * quality + rng.normal(0, 10, truth.shape), 0, 100).astype(int)
    predicted = right + (100 - right)[:, ::-1]
    names = [f"{index}.png" for index in range(images)]
    return bootstrap.ImageIoU(names, [f"c{i}" for i in range(classes)], right, truth, predicted)


def literal_iou(one, drawn):
    """IoU of classes and mIoU of a list of drawn images, one after the other."""
    iou, union = [], []
    for label in range(one.truth.shape[1]):
        right = sum(one.right[index, label] for index in drawn)
        truth = sum(one.truth[index, label] for index in drawn)
        either = truth + sum(one.predicted[index, label] for index in drawn) - right
        union.append(either)
        iou.append(100 * right / either if truth else float("nan"))
    return [*iou, np.nansum(iou) / sum(each > 0 for each in union)]


def test_a_sample_is_what_its_images_say(bootstrap):
    one = counts(bootstrap, 0.6, images=5)
    one.truth[:, 1] = one.right[:, 1] = 0  # predicted only
    one.truth[:, 2] = one.right[:, 2] = one.predicted[:, 2] = 0
    weights = np.array([[1, 1, 1, 1, 1], [0, 3, 0, 2, 0]])
    for sample, drawn in zip(one.resampled(weights), ([0, 1, 2, 3, 4], [1, 1, 1, 3, 3])):
        np.testing.assert_allclose(sample, literal_iou(one, drawn))


def test_pairs_are_of_the_same_images(bootstrap):
    """A model that is a little better on each image is better for sure, whatever the images."""
    base = counts(bootstrap, 0.6)
    better = bootstrap.ImageIoU(
        base.file_names, base.class_names, base.right + 1, base.truth, base.predicted
    )
    whole, drawn = bootstrap.paired_differences([better], [base], samples=200)
    assert whole.shape == (1, 4) and drawn.shape == (200, 4)
    assert (drawn > 0).all() and bootstrap.p_value(drawn[:, -1]) == pytest.approx(0.01)
    # Two models of equal quality, which err on different images, differ by chance.
    _, drawn = bootstrap.paired_differences([counts(bootstrap, 0.6, seed=1)], [base], samples=500)
    low, high = np.percentile(drawn[:, -1], (2.5, 97.5))
    assert low < 0 < high and bootstrap.p_value(drawn[:, -1]) > 0.05


def test_other_images_are_an_error(bootstrap):
    base = counts(bootstrap, 0.6)
    other = counts(bootstrap, 0.6, images=29)
    with pytest.raises(ValueError, match="different images"):
        bootstrap.paired_differences([other], [base])
    other = counts(bootstrap, 0.6)
    other.class_names[0] = "other"
    with pytest.raises(ValueError, match="different classes"):
        bootstrap.paired_differences([other], [base])


@pytest.fixture
def runs(bootstrap, tmp_path):
    """Two seeds of two configs; of a third one, none has counted its images."""
    runs = []
    for name, quality in (("none", 0.5), ("sgr", 0.7), ("late", None)):
        for seed in (0, 1):
            run = SimpleNamespace(name=name, seed=seed, folder=tmp_path / name / f"seed_{seed}")
            (run.folder / "inference").mkdir(parents=True)
            if quality:
                one = counts(bootstrap, quality, seed=seed)
                np.savez(run.folder / bootstrap.FILE, **vars(one))
            runs.append(run)
    return runs


def outcomes(runs, unfinished=()):
    states = ["running" if (run.name, run.seed) in unfinished else "finished" for run in runs]
    return [SimpleNamespace(status=state) for state in states]


def test_table(bootstrap, runs):
    text = bootstrap.compare_to_baseline(runs, outcomes(runs), "none", samples=300)
    header, _, miou, p, *classes, _, _ = text.split("\n\n")[0].splitlines() + ["", ""]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["", "none", "sgr (2 seeds)"]
    base = np.mean([literal_iou(counts(bootstrap, 0.5, seed=s), range(30))[-1] for s in (0, 1)])
    sgr = np.mean([literal_iou(counts(bootstrap, 0.7, seed=s), range(30))[-1] for s in (0, 1)])
    assert f" {base:.1f} " in miou and f" {sgr - base:+.1f} ± " in miou
    assert " 0.007 " in p  # none of 300 draws is on the other side
    assert [line.split("|")[1].strip() for line in classes] == ["c0", "c1", "c2"]
    assert all("**+" in line for line in classes)
    assert "none with the same seeds" in text and "30 images are drawn 300 times" in text


def test_only_seeds_that_both_have(bootstrap, runs):
    text = bootstrap.compare_to_baseline(runs, outcomes(runs, {("none", 1)}), "none", samples=50)
    assert "sgr (1 seed)" in text and "±" not in text.split("\n\n")[0]
    neither = {("none", 0), ("none", 1)}
    text = bootstrap.compare_to_baseline(runs, outcomes(runs, neither), "none", samples=50)
    assert "ImageIoUEvaluator" in text and "|" not in text


def test_a_config_that_was_evaluated_otherwise_is_left_out(bootstrap, runs):
    """The others are compared all the same."""
    for run in runs:
        if run.name == "late":
            one = counts(bootstrap, 0.5, images=29)
            np.savez(run.folder / bootstrap.FILE, **vars(one))
    text = bootstrap.compare_to_baseline(runs, outcomes(runs), "none", samples=50)
    reason = "No difference of late to none: the runs were evaluated on different images."
    assert "sgr (2 seeds)" in text and "late (" not in text and text.endswith(f"\n\n{reason}\n")
    only = [run for run in runs if run.name != "sgr"]
    text = bootstrap.compare_to_baseline(only, outcomes(only), "none", samples=50)
    assert text == f"{reason}\n"


def test_p_is_never_written_as_nothing(bootstrap, runs):
    """No draw of 5000 is on the other side, so that p is below 2 / 5000."""
    text = bootstrap.compare_to_baseline(runs, outcomes(runs), "none", samples=5000)
    (row,) = [line for line in text.splitlines() if line.startswith("| p ")]
    assert " < 0.001 " in row


def test_unknown_baseline(bootstrap, runs):
    with pytest.raises(ValueError, match="--baseline plain: the configs are none, sgr, late"):
        bootstrap.check_baseline(runs, "plain")
    bootstrap.check_baseline(runs, None)
