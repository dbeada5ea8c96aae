"""Arrays and scripts, read back."""

import json

import numpy as np
import pytest

from explorer_data import read_script, unpack
from sgr.explorer.packing import (
    pack,
    pack_fractions,
    pack_labels,
    pack_shares,
    rounded,
    write_script,
)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[0, 255], [3, 4]], np.uint8),
        np.array([0, 65535], np.uint16),
        np.array([-1, 300], np.int16),
        np.array([0.5, np.nan], np.float32),
        np.zeros((0, 3), np.float32),
        np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    ],
)
def test_arrays_come_back(array):
    found = unpack(pack(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_other_types_become_those_of_the_page():
    assert unpack(pack(np.array([True, False]))).tolist() == [1, 0]
    assert unpack(pack(np.array([0.1]))).dtype == np.float32


def test_shares_are_rounded_to_their_steps():
    shares = np.random.default_rng(0).random(1000)
    assert np.abs(unpack(pack_shares(shares)) / 255 - shares).max() <= 0.5 / 255 + 1e-9
    assert np.abs(unpack(pack_fractions(shares)) / 65535 - shares).max() <= 0.5 / 65535 + 1e-9


@pytest.mark.parametrize(("largest", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_labels_are_counted_from_one(largest, dtype):
    labels = np.array([[-1, 0], [7, largest]])
    found = unpack(pack_labels(labels))
    assert found.tolist() == [[0, 1], [8, largest + 1]] and found.dtype == dtype


def test_no_text_leaves_its_string(tmp_path):
    texts = ["</script><script>alert(1)</script>", '");alert(1);("', "\u2028\udc80\n\\", HOSTILE]
    write_script(tmp_path / "a.js", "receive", 3, {"names": texts, "not": float("nan")})
    number, content = read_script(tmp_path / "a.js", "receive")
    assert number == 3 and content == {"names": texts, "not": None}
    assert (tmp_path / "a.js").read_bytes().count(b"\n") == 1


HOSTILE = "<img src=x onerror=alert(1)>"


def test_numbers_are_shortened():
    value = {"a": [1 / 3, 12345.678, float("nan"), None, 5, "x"]}
    assert json.dumps(rounded(value)) == '{"a": [0.3333, 12350.0, NaN, null, 5, "x"]}'
