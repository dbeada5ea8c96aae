import pytest

from evaluate_share import (
    evaluate_panoptic_share,
    evaluate_semantic_share,
    evaluate_shares,
    evaluate_token_share,
)
from two_processes import run_twice


def test_two_processes_equal_one(tmp_path):
    """An odd number of images, and a process without any."""
    numbers = [5, 1]
    results = run_twice(evaluate_shares, tmp_path, tmp_path, numbers)
    for num_images, main, other in zip(numbers, *results):
        assert other == (None, None, None)
        tokens, panoptic, semantic = main
        alone = evaluate_token_share(0, 1, tmp_path, num_images)
        assert alone["tokens"]["images_C"] == num_images
        assert alone["tokens"].get("images_I", 0) == num_images // 2
        assert list(tokens) == list(alone) and ("queries" in alone) == (num_images > 1)
        for block, values in alone.items():
            assert list(tokens[block]) == list(values)
            assert tokens[block] == pytest.approx(values, rel=1e-12)

        alone = evaluate_panoptic_share(0, 1, tmp_path, num_images)["panoptic_seg"]
        assert 0 < alone["PQ"] < 100
        assert panoptic["panoptic_seg"] == pytest.approx(alone, rel=1e-12)

        alone = evaluate_semantic_share(0, 1, tmp_path, num_images)["sem_seg"]
        assert 0 < alone["iIoU"] < 100
        assert list(semantic["sem_seg"]) == list(alone)
        assert semantic["sem_seg"] == pytest.approx(alone, rel=1e-12, nan_ok=True)
        for world_size in (1, 2):
            output = tmp_path / f"semantic_share_of_{num_images}-{world_size}"
            assert len(list((output / "cityscapes_predictions").iterdir())) == num_images
            assert (output / "sem_seg.json").is_file()
