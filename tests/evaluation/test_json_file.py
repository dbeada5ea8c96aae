import json

import numpy as np
import pytest
import torch

from sgr.evaluation.json_file import write_json


def read(path):
    def refuse(constant):
        raise AssertionError(f"JSON has no {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_whatever_evaluators_return(tmp_path):
    values = {
        "nan": float("nan"), "inf": np.float32("-inf"), "third": 1 / 3,
        "numpy": np.float64(0.1), "count": np.int64(3), "list": [np.array([1.0, np.nan]), (2,)],
        "tensor": torch.tensor(0.5), "text": "a", "other": tmp_path, 7: None,
    }  # fmt: skip
    path = tmp_path / "new" / "results.json"
    write_json(path, {"task": values})
    assert read(path) == {
        "task": {
            "nan": None, "inf": None, "third": 1 / 3, "numpy": 0.1, "count": 3,
            "list": [[1.0, None], [2]], "tensor": 0.5, "text": "a", "other": str(tmp_path),
            "7": None,
        }
    }  # fmt: skip


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    write_json(str(path), {"mIoU": 1.5})
    circle = {}
    circle["circle"] = circle
    with pytest.raises(RecursionError):
        write_json(path, circle)
    assert read(path) == {"mIoU": 1.5}
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
