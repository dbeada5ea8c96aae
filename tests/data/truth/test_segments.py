import numpy as np
import pytest
from PIL import Image

from sgr.data.truth.segments import find_segments, read_segment_map, segment_labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_places_of_ids(dtype):
    id_map = np.array([[0, 9, 7], [9, 3, 100]], dtype)
    assert find_segments(id_map, [9, 2**40, 3, 100]).tolist() == [[-1, 0, -1], [0, 2, 3]]
    assert find_segments(id_map, []).tolist() == [[-1] * 3] * 2
    assert find_segments(id_map, [9, 9, 2**32 + 7]).dtype == np.int32


def test_negative_and_large_ids():
    id_map = np.array([[-1, -2, 2**40, 5]])
    assert find_segments(id_map, [5, 2**40, -2]).tolist() == [[-1, 2, 1, 0]]
    assert find_segments(id_map, [5]).tolist() == [[-1, -1, -1, 0]]


@pytest.mark.parametrize("shape", [(9, 13), (1, 40), (40, 1), (1, 1), (0, 5)])
@pytest.mark.parametrize("ids", [[3, 2**40, -7, 3, 0, 12], [5], []])
@pytest.mark.parametrize("in_map", [[3, 12, 0, 2**40, -7, 5, 99, -1], [5], [99]])
def test_places_are_those_of_a_search_for_each_pixel(shape, ids, in_map):
    rng = np.random.default_rng(0)
    for longest in (1, 4, 30):  # runs of pixels, which go on in the next row
        id_map = rng.choice(in_map, shape).repeat(longest).reshape(-1)[: np.prod(shape, dtype=int)]
        id_map = id_map.reshape(shape)
        for given in (id_map, id_map.T, id_map[::-1, ::-1]):
            expected = [[ids.index(id) if id in ids else -1 for id in row] for row in given]
            places = find_segments(given, ids)
            assert places.dtype == np.int32 and places.shape == given.shape
            assert places.tolist() == expected


def test_labels_of_segments():
    segments = [{"category_id": 3}, {"category_id": 4, "iscrowd": 1}, {"category_id": 0}]
    labels = segment_labels(segments, ignore_value=255)
    assert labels.dtype == np.int64 and labels.tolist() == [3, 255, 0, 255]
    assert labels[np.array([[2, -1], [1, 0]])].tolist() == [[0, 255], [255, 3]]
    assert segment_labels([], ignore_value=-1).tolist() == [-1]


def save(path, ids):
    picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return str(path)


def test_ids_of_three_bytes(tmp_path):
    ids = np.array([[0, 7, 256], [16777215, 70000, 7]])
    segments = [{"id": 70000}, {"id": 7}, {"id": 16777215}, {"id": 256}, {"id": 9}]
    record = {"pan_seg_file_name": save(tmp_path / "ids.png", ids), "segments_info": segments}
    indices = read_segment_map(record)
    assert indices.dtype == np.int32
    assert indices.tolist() == [[-1, 1, 3], [2, 0, 1]]


def test_ids_of_one_channel_and_a_segment_of_id_zero(tmp_path):
    ids = np.array([[0, 1], [2, 0]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    segments = [{"id": 2}, {"id": 0}, {"id": 1}]
    record = {"pan_seg_file_name": str(tmp_path / "ids.png"), "segments_info": segments}
    assert read_segment_map(record).tolist() == [[1, 2], [0, 1]]


def test_unlabelled_picture(tmp_path):
    path = save(tmp_path / "ids.png", np.zeros((3, 4), int))
    assert (read_segment_map({"pan_seg_file_name": path, "segments_info": []}) == -1).all()


@pytest.mark.parametrize("known", [[], [3], [8000]])
def test_unknown_ids_are_named(tmp_path, known):
    ids = np.array([[0, 5000, 12]])
    record = {
        "pan_seg_file_name": save(tmp_path / "ids.png", ids),
        "segments_info": [{"id": id} for id in known],
    }
    with pytest.raises(ValueError, match=r"ids\.png holds the id\(s\) 12, 5000, which its segm"):
        read_segment_map(record)
