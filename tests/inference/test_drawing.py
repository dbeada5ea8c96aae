import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as rle

import sgr.inference.drawing as drawing
from sgr.inference import choose_concepts, draw_output, draw_output_regions, output_metadata
from sgr.modeling.reasoning import ConceptRegions

CLASSES = output_metadata(
    Metadata(stuff_classes=["sky", "road", "car"], thing_classes=["car"]), num_classes=3
)
SIZE = (60, 80)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


@pytest.fixture
def outputs():
    """One output of each kind: sky above road, and a car."""
    scores = torch.zeros(3, *SIZE)
    scores[0, :30], scores[1, 30:] = 1, 1
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:30], ids[30:50] = 1, 2
    segments = [
        {"id": 1, "isthing": False, "category_id": 0},
        {"id": 2, "isthing": True, "category_id": 0},
    ]
    instances = Instances(SIZE)
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 50, 40], [20, 20, 30, 30]]))
    instances.pred_masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    instances.pred_masks[0, 5:40, 5:50] = instances.pred_masks[1, 20:30, 20:30] = True
    instances.scores = torch.tensor([0.9, 0.4])
    instances.pred_classes = torch.tensor([0, 0])
    return {"sem_seg": scores, "panoptic_seg": (ids, segments), "instances": instances}


@pytest.fixture
def regions():
    """Of stride 10 over an input of 30 x 40: above, below, and faint everywhere."""
    logits = torch.full((1, 3, 3, 4), -9.0)
    logits[0, 0, :1], logits[0, 1, 2:], logits[0, 2] = 9, 5, -4
    return ConceptRegions(logits, stride=10)


@pytest.fixture
def same_colors(monkeypatch):
    """What Detectron2 draws in random colours."""
    monkeypatch.setattr(
        "detectron2.utils.visualizer.random_color", lambda **options: (0.2, 0.9, 0.2)
    )
    monkeypatch.setattr(Visualizer, "_jitter", lambda self, color: color)


def test_semantic_as_scores_and_as_labels(image, outputs):
    labels = outputs["sem_seg"].argmax(0)
    expected = Visualizer(image, CLASSES).draw_sem_seg(labels, alpha=0.45).get_image()
    for sem_seg in (outputs["sem_seg"], labels.int()):
        np.testing.assert_array_equal(draw_output(image, {"sem_seg": sem_seg}, CLASSES), expected)


@pytest.mark.parametrize("video", [False, True])
def test_the_image_is_seen_below_the_colours(image, outputs, video):
    labels = outputs["sem_seg"].argmax(0)
    visualizer = VideoVisualizer(CLASSES) if video else None
    picture = draw_output(image, {"sem_seg": labels}, CLASSES, video=visualizer)
    inside = (slice(3, 27), slice(3, 12))  # beside the name, and off the border
    kept = picture[inside].astype(float).std(axis=(0, 1)) / image[inside].std(axis=(0, 1))
    assert kept == pytest.approx([0.55] * 3, abs=0.05)  # of the contrast


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_without_a_name_are_not_drawn(image, label):
    labels = torch.full(SIZE, label)
    np.testing.assert_array_equal(draw_output(image, {"sem_seg": labels}, CLASSES), image)
    labels[:, :40] = 0
    picture = draw_output(image, {"sem_seg": labels}, CLASSES)
    np.testing.assert_array_equal(picture[:, 45:], image[:, 45:])
    assert (picture[:, :38] != image[:, :38]).any(-1).mean() > 0.95


def test_of_several_results_one_is_drawn(image, outputs, same_colors):
    panoptic = outputs["panoptic_seg"]
    expected = Visualizer(image, CLASSES).draw_panoptic_seg(*panoptic, alpha=0.45).get_image()
    np.testing.assert_array_equal(draw_output(image, outputs, CLASSES), expected)
    del outputs["panoptic_seg"]
    one = outputs["instances"][:1]
    expected = Visualizer(image, CLASSES).draw_instance_predictions(one).get_image()
    np.testing.assert_array_equal(draw_output(image, outputs, CLASSES), expected)
    both = draw_output(image, outputs, CLASSES, score_threshold=0.4)
    assert (both != expected).any()


@pytest.mark.parametrize("kind", ["mask", "BitMasks", "float", "no boxes", "boxes of zeros"])
@pytest.mark.parametrize("video", [False, True])
def test_forms_of_instances(image, outputs, same_colors, kind, video):
    def draw(instances):
        visualizer = VideoVisualizer(CLASSES) if video else None
        return draw_output(image, {"instances": instances}, CLASSES, video=visualizer)

    instances = outputs["instances"][:1]
    same_place = Instances(SIZE, **instances.get_fields())
    if kind == "BitMasks":
        same_place.pred_masks = BitMasks(instances.pred_masks)
    elif kind == "float":
        same_place.pred_masks = instances.pred_masks.float()
    elif kind == "no boxes":
        same_place.remove("pred_boxes")
    elif kind == "boxes of zeros":
        same_place.pred_boxes = Boxes(torch.zeros(1, 4))
    fields = set(same_place.get_fields())
    picture = draw(same_place)
    assert set(same_place.get_fields()) == fields  # as they were
    assert (picture[10:35, 10:45] != image[10:35, 10:45]).any()
    if not video:  # whose colours are random ones of another module
        np.testing.assert_array_equal(picture, draw(instances))


def test_detections_without_masks_or_scores(image, outputs):
    instances = outputs["instances"]
    instances.remove("pred_masks")
    instances.remove("scores")
    picture = draw_output(image, {"instances": instances}, CLASSES)
    assert (picture[5:40, 5] != image[5:40, 5]).any(-1).mean() > 0.9


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("video", [None, VideoVisualizer(CLASSES)])
def test_nothing_found(image, outputs, masks, video):
    instances = outputs["instances"]
    if not masks:
        instances.remove("pred_masks")
    ids, _ = outputs["panoptic_seg"]
    for output in ({"instances": instances}, {"panoptic_seg": (ids, [])}):
        picture = draw_output(image, output, CLASSES, score_threshold=0.95, video=video)
        np.testing.assert_array_equal(picture, image)


def test_class_numbers_of_unknown_classes(image, outputs):
    classes = output_metadata(Metadata(name="nothing known"), num_classes=3)
    for kind in ("panoptic_seg", "instances", "sem_seg"):
        picture = draw_output(image, {kind: outputs[kind]}, classes)
        assert (picture != image).any()


def test_names_are_no_formulas(image, outputs):
    names = {f"{kind}_classes": ["a$_$", "$", r"$\frac{$"] for kind in ("stuff", "thing")}
    classes = output_metadata(Metadata(name="odd names", **names), num_classes=3)
    for kind in ("panoptic_seg", "instances", "sem_seg"):
        assert (draw_output(image, {kind: outputs[kind]}, classes) != image).any()


@pytest.mark.parametrize("kind", ["panoptic_seg", "instances"])
def test_an_instance_keeps_its_colour_in_a_video(outputs, kind):
    image = np.full((*SIZE, 3), 128, np.uint8)
    video = VideoVisualizer(CLASSES)

    def inside(output):
        # Below the name in its middle, and between lines.
        return draw_output(image, {kind: output}, CLASSES, video=video)[46, 10]

    ids, segments = outputs["panoptic_seg"]
    moved = ids.roll(1, dims=0)
    if kind == "panoptic_seg":
        first, second = (ids, segments), (moved, segments)
    else:
        first, second = Instances(SIZE), Instances(SIZE)
        for instances, map_ in ((first, ids), (second, moved)):
            instances.pred_masks = (map_ == 2)[None]
            instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1).long()
    color = inside(first)
    assert (color != 128).any()
    assert all((inside(second) == color).all() for _ in range(5))
    masks = [np.asfortranarray(each == 2, dtype=np.uint8) for each in (ids, moved)]
    assert rle.iou(*([rle.encode(each)] for each in masks), [False]) > 0.6


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (481, 333), (127, 1601)])
def test_pictures_have_the_images_size(size):
    image = np.zeros((*size, 3), np.uint8)
    for video in (None, VideoVisualizer(CLASSES)):
        output = {"sem_seg": torch.zeros(size, dtype=torch.uint8)}
        picture = draw_output(image, output, CLASSES, video=video)
        assert picture.shape == image.shape and picture.dtype == np.uint8


def test_an_output_with_nothing_to_draw(image):
    with pytest.raises(ValueError, match=r"the output has \['proposals'\], but none of"):
        draw_output(image, {"proposals": 1}, CLASSES)


@pytest.mark.parametrize(
    "kind, notes",
    [
        ("sem_seg", ["sky 100 %", "road 100 %"]),
        ("panoptic_seg", ["sky 100 %", "car 100 %"]),
        ("instances", ["peak 1.00", "peak 0.99"]),
    ],
)
def test_titles_of_regions(image, outputs, regions, kind, notes, monkeypatch):
    output = {kind: outputs[kind], "concept_regions": regions}
    concepts = choose_concepts(output, 2)
    assert concepts.tolist() == [0, 1]
    seen = []
    monkeypatch.setattr(drawing, "draw_regions_beside", lambda *args: seen.append(args))
    draw_output_regions(image, image, output, CLASSES, input_size=(30, 40), concepts=concepts)
    ((_, _, heat, titles),) = seen
    assert titles == [f"concept {k}: {note}" for k, note in zip(concepts, notes)]
    assert heat[0, :25].min() > 0.9 and heat[0, 120:].max() < 0.1


def test_regions_beside(image, outputs, regions):
    output = {"sem_seg": outputs["sem_seg"], "concept_regions": regions}
    picture = draw_output_regions(
        image, image, output, CLASSES, input_size=(30, 40), concepts=np.array([2, 0])
    )
    assert picture.shape[0] == 360 and picture.shape[1] > 1.4 * 480
    with pytest.raises(ValueError, match='no "concept_regions"'):
        choose_concepts({}, 3)


@pytest.mark.parametrize("label", [-1, 255])
def test_regions_of_a_map_without_known_labels(image, regions, label):
    output = {"sem_seg": torch.full(SIZE, label), "concept_regions": regions}
    draw_output_regions(image, image, output, CLASSES, input_size=(30, 40), concepts=np.array([0]))


def test_panoptic_pixels_without_a_segment_have_no_class(outputs):
    ids, _ = outputs["panoptic_seg"]
    labels, names = drawing.class_map(
        {"panoptic_seg": (ids, [{"id": 1, "isthing": True, "category_id": 0}])}, CLASSES
    )
    assert names[3] == "car"
    np.testing.assert_array_equal(labels, np.where(ids == 1, 3, -1))
    labels, _ = drawing.class_map({"panoptic_seg": (ids, [])}, CLASSES)
    assert (labels == -1).all()
