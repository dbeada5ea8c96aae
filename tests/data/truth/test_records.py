import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from sgr.data.augmentations.center_crop import CentralSquare
from sgr.data.truth.instances import draw_instances, read_shapes
from sgr.data.truth.records import (
    apply_test_transform,
    check_image_size,
    check_sizes,
    count_without_mask,
    file_size,
    has_classes,
    has_instances,
    read_class_map,
    read_instance_map,
)

SIZE = (10, 12)


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def mask(x, y, w, h):
    array = np.zeros(SIZE, np.uint8, order="F")
    array[y : y + h, x : x + w] = 1
    return array


def test_the_smaller_mask_lies_on_top_whatever_the_order_and_the_format():
    large, small, crowd = mask(0, 0, 8, 8), mask(2, 2, 3, 3), mask(0, 0, 12, 10)
    plain = mask_util.encode(crowd)
    runs = np.flatnonzero(np.diff(large.flatten(order="F").astype(int), prepend=0)).tolist()
    counts = np.diff([0, *runs, large.size]).tolist()
    annotations = [
        {"segmentation": [polygon(2, 2, 3, 3)]},
        {"segmentation": {"size": list(SIZE), "counts": counts}},
        {"segmentation": plain, "iscrowd": 1},
        {"segmentation": mask_util.encode(mask(10, 8, 2, 2))},
        {"segmentation": []},
        {"bbox": [0, 0, 3, 3]},
    ]
    expected = np.full(SIZE, -1)
    expected[large.astype(bool)] = 1
    expected[small.astype(bool)] = 0
    expected[8:, 10:] = 3
    np.testing.assert_array_equal(read_instance_map({"annotations": annotations}, SIZE), expected)


@pytest.mark.parametrize("size", [SIZE, (1, 12), (10, 1)])
@pytest.mark.parametrize(
    "augment",
    [None, lambda h, w: T.HFlipTransform(w), lambda h, w: T.CropTransform(0, 0, (w + 3) // 4, h)],
)
def test_masks_lie_row_by_row_whatever_the_format(size, augment):
    """NumPy is slow where masks of both orders meet."""
    height, width = size
    left = np.zeros(size, np.uint8, order="F")
    left[:, : (width + 1) // 2] = 1
    formats = [polygon(0, 0, (width + 1) // 2, height)], mask_util.encode(left)
    annotations = [{"segmentation": each} for each in formats]
    transforms, expected = None, left
    if augment is not None:
        transforms = T.TransformList([augment(height, width)])
        expected = transforms.apply_segmentation(left)
    shapes = read_shapes(annotations, size=size, file_name="a.jpg")
    masks = [mask for _, mask in draw_instances(shapes, expected.shape, transforms)]
    assert len(masks) == 2
    for mask in masks:
        assert mask.dtype == bool and mask.flags.c_contiguous
        np.testing.assert_array_equal(mask, expected)


def test_an_instance_of_several_polygons_is_one():
    record = {"annotations": [{"segmentation": [polygon(0, 0, 2, 2), polygon(5, 5, 2, 2)]}]}
    instances = read_instance_map(record, SIZE)
    np.testing.assert_array_equal(instances == 0, mask(0, 0, 2, 2) + mask(5, 5, 2, 2) > 0)


def test_a_mask_of_another_size_is_an_error():
    record = {"annotations": [{"segmentation": mask_util.encode(mask(0, 0, 2, 2))}]}
    with pytest.raises(ValueError, match="annotation 0 .* is 12 x 10, but the image is 12 x 20"):
        read_instance_map(record, (20, 12))
    with pytest.raises(ValueError, match="annotation 0 of a.jpg: the mask is 12 x 10"):
        read_instance_map({**record, "file_name": "a.jpg"}, (20, 12))


def test_of_equal_masks_the_later_lies_on_top():
    annotations = [{"segmentation": [polygon(1, 1, 4, 4)]}, {"segmentation": [polygon(2, 1, 4, 4)]}]
    instances = read_instance_map({"annotations": annotations}, SIZE)
    np.testing.assert_array_equal(instances == 1, mask(2, 1, 4, 4))
    np.testing.assert_array_equal(instances == 0, mask(1, 1, 1, 4))


def test_boxes_alone_are_no_instances():
    """Whatever area a mask's box has, the mask counts."""
    annotations = [
        {"bbox": [0, 0, 5, 5]},
        {"bbox": [0, 0, 5, 5], "segmentation": []},
        {"bbox": [0, 0, 5, 5], "segmentation": [[0, 0, 5, 5]]},
        {"bbox": [0, 0, 5, 5], "segmentation": None},
        {"bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"bbox": [0, 0, 0, 0], "segmentation": [polygon(1, 1, 2, 2)]},
        {"bbox": [0, 0, 5, 5], "segmentation": mask_util.encode(mask(0, 0, 0, 0))},
    ]
    record = {"annotations": annotations}
    instances = read_instance_map(record, SIZE)
    np.testing.assert_array_equal(instances, np.where(mask(1, 1, 2, 2), 5, -1))
    assert count_without_mask(record) == 4
    assert count_without_mask({}) == count_without_mask({"annotations": []}) == 0


def test_panoptic_things(tmp_path):
    ids = np.array([[1000, 70000, 3], [70000, 5, 0]])
    picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    path = str(tmp_path / "panoptic.png")
    Image.fromarray(picture).save(path)
    segments = [
        {"id": 3, "category_id": 0, "isthing": False},
        {"id": 70000, "category_id": 0, "isthing": True},
        {"id": 5, "category_id": 1, "isthing": True, "iscrowd": 1},
        {"id": 1000, "category_id": 2},
    ]
    record = {"pan_seg_file_name": path, "segments_info": segments}
    expected = [[-1, 1, -1], [1, -1, -1]]
    assert read_instance_map(record, ids.shape).tolist() == expected
    assert read_instance_map(record, ids.shape, thing_ids={2}).tolist() == [[3, 1, -1], expected[1]]


def test_a_missing_panoptic_picture_is_named(tmp_path):
    record = {"pan_seg_file_name": str(tmp_path / "gone.png"), "segments_info": []}
    with pytest.raises(FileNotFoundError, match="gone.png does not exist"):
        read_instance_map(record, SIZE)


def test_has_instances():
    assert has_instances({"annotations": []})
    assert has_instances({"pan_seg_file_name": "x", "segments_info": []})
    assert not has_instances({"sem_seg_file_name": "x"})
    assert not has_instances({"pan_seg_file_name": "x"})


@pytest.fixture
def panoptic(tmp_path):
    """A record of four segments, one of them a crowd, and an unlabelled pixel."""
    ids = np.array([[1000, 70000, 3], [70000, 5, 0]])
    picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    path = str(tmp_path / "panoptic.png")
    Image.fromarray(picture).save(path)
    segments = [
        {"id": 3, "category_id": 0},
        {"id": 70000, "category_id": 6},
        {"id": 5, "category_id": 1, "iscrowd": 1},
        {"id": 1000, "category_id": 2},
    ]
    return {"pan_seg_file_name": path, "segments_info": segments}


def test_classes_of_segments(panoptic):
    expected = [[2, 6, 0], [6, -1, -1]]
    assert read_class_map(panoptic).tolist() == expected
    assert read_class_map(panoptic, num_classes=7, ignore_label=255).tolist() == expected
    with pytest.raises(ValueError, match=r"panoptic.png has category_id 6; expected are 0 to 5"):
        read_class_map(panoptic, num_classes=6)


@pytest.mark.parametrize("ignore_label", [7, 255])
def test_classes_of_a_label_map_come_before_those_of_segments(panoptic, tmp_path, ignore_label):
    labels = np.array([[0, 1, ignore_label]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {**panoptic, "sem_seg_file_name": str(tmp_path / "labels.png")}
    labels = read_class_map(record, num_classes=2, ignore_label=ignore_label)
    assert labels.tolist() == [[0, 1, -1]]
    assert read_class_map(record).tolist() == [[0, 1, ignore_label]]
    with pytest.raises(ValueError, match=r"labels.png holds the label\(s\) 1"):
        read_class_map(record, num_classes=1, ignore_label=ignore_label)


def test_has_classes():
    assert has_classes({"sem_seg_file_name": "x"})
    assert has_classes({"pan_seg_file_name": "x", "segments_info": []})
    assert not has_classes({"annotations": []})
    # Panoptic pictures alone hold numbers, and do not say of what.
    assert not has_classes({"pan_seg_file_name": "x"})
    assert not has_classes({"segments_info": []})


TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64]
TRANSFORMS = {
    "smaller": T.ResizeTransform(40, 60, 13, 31),
    "larger": T.ResizeTransform(40, 60, 57, 90),
    "square": CentralSquare(17).transform_of((40, 60)),
    "large square": CentralSquare(77).transform_of((40, 60)),
    "crop": T.CropTransform(7, 3, 30, 20),
    "flip": T.TransformList([T.HFlipTransform(60), T.ResizeTransform(40, 60, 20, 30)]),
}


def literal_resize(labels, height, width):
    """Each pixel takes the value under its centre."""
    rows = [int((row + 0.5) * labels.shape[0] / height) for row in range(height)]
    columns = [int((column + 0.5) * labels.shape[1] / width) for column in range(width)]
    return np.array([[labels[row, column] for column in columns] for row in rows])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_test_transform_moves_every_type_like_an_image(name, dtype):
    limits = np.iinfo(dtype)
    labels = np.random.default_rng(0).integers(limits.min, limits.max, (40, 60), dtype=dtype)
    transform = TRANSFORMS[name]
    moved = apply_test_transform({"ground_truth_transform": transform}, labels)
    assert moved.dtype == dtype
    # Byte by byte, as Detectron2 moves images, of which labels are a channel.
    in_bytes = np.ascontiguousarray(labels)[..., None].view(np.uint8)
    channels = [
        transform.apply_segmentation(np.ascontiguousarray(in_bytes[..., each]))
        for each in range(in_bytes.shape[-1])
    ]
    expected = np.ascontiguousarray(np.stack(channels, axis=-1)).view(dtype)[..., 0]
    np.testing.assert_array_equal(moved, expected)


# Sides of the files are odd: so no centre lies between two pixels.
@pytest.mark.parametrize("height, width, side", [(41, 61, 17), (61, 43, 77), (33, 33, 33)])
def test_the_test_transform_takes_the_value_under_the_centre(height, width, side):
    labels = np.random.default_rng(0).integers(-1, 5000, (height, width))
    transform = CentralSquare(side).transform_of((height, width))
    moved = apply_test_transform({"ground_truth_transform": transform}, labels)
    longer = int(side / min(height, width) * max(height, width) + 0.5)
    new = (side, longer) if height <= width else (longer, side)
    top, left = ((each - side) // 2 for each in new)
    expected = literal_resize(labels, *new)[top : top + side, left : left + side]
    np.testing.assert_array_equal(moved, expected)


def test_the_test_transform_without_a_transform_is_the_map():
    labels = np.arange(6).reshape(2, 3)
    assert apply_test_transform({"file_name": "a.jpg"}, labels) is labels


def test_the_test_transform_takes_any_layout():
    labels = np.arange(24 * 40).reshape(24, 40)
    input_ = {"ground_truth_transform": CentralSquare(12).transform_of((40, 24))}
    expected = apply_test_transform(input_, np.ascontiguousarray(labels.T))
    np.testing.assert_array_equal(apply_test_transform(input_, labels.T), expected)
    np.testing.assert_array_equal(
        apply_test_transform(input_, np.asfortranarray(labels.T)), expected
    )
    assert not apply_test_transform(input_, np.zeros((40, 24), bool)).any()


def test_the_test_transform_names_a_map_of_another_size():
    input_ = {
        "file_name": "a.jpg",
        "ground_truth_transform": CentralSquare(12).transform_of((40, 24)),
    }
    with pytest.raises(ValueError, match="ground truth of a.jpg is 24 x 40 pixels .height x width"):
        apply_test_transform(input_, np.zeros((24, 40), np.uint8))


def test_file_size():
    image = torch.zeros(3, 5, 6)
    record = {"height": 50, "width": 60}
    assert file_size(record, {"image": image, "height": 9, "width": 9}) == (50, 60)
    assert file_size({}, {"image": image, "height": 50, "width": 60}) == (50, 60)
    assert file_size({}, {"image": image}) == (5, 6)
    square = {
        "image": image,
        "height": 5,
        "width": 5,
        "ground_truth_transform": CentralSquare(5).transform_of((70, 80)),
    }
    assert file_size({}, square) == (70, 80)
    assert file_size(record, square) == (50, 60)
    assert file_size({}, {**square, "ground_truth_transform": TRANSFORMS["larger"]}) == (40, 60)


@pytest.mark.parametrize("side", ["3", None, 0, -1, 2.5, [3]])
def test_sizes_are_numbers_of_pixels(side):
    check_sizes([{"file_name": "a", "height": 3, "width": 4}, {"file_name": "b"}])
    with pytest.raises(ValueError, match="the record of c has the height and width .*pixels"):
        check_sizes([{"file_name": "c", "height": 3, "width": side}])


def test_an_image_of_another_size_than_its_record():
    image, record = np.zeros((3, 4, 3), np.uint8), {"file_name": "a"}
    check_image_size(record, image)
    assert (record["height"], record["width"]) == (3, 4)
    with pytest.raises(ValueError, match="image a is 4 x 3 pixels, and its record says 4 x 5"):
        check_image_size({**record, "height": 5}, image)
