import json
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import nn
from torch.nn import functional as F

from sgr.config import add_sgr_config
from sgr.modeling.layers import strips
from sgr.modeling.mask_classification import (
    CRITERION_REGISTRY,
    PANOPTIC_MERGE_REGISTRY,
    HungarianMatcher,
    MaskFormerSegmentor,
    SetCriterion,
    merge_by_pixel,
    merge_by_pixel_within_masks,
    semantic_inference,
)

ROOT = Path(__file__).resolve().parents[3]
KEYS = ROOT.parent / "shared" / "reference" / "maskformer_R101_coco-stuff-10k-171.keys.txt"
R101 = ROOT / "configs" / "coco-stuff-10k-171" / "maskformer_R101_bs16_78750.yaml"


class _Backbone(nn.Module):
    """Strided convolutions of the channels that the head fixture expects."""

    size_divisibility = 32

    def __init__(self, input_shape):
        super().__init__()
        self.convs = nn.ModuleDict(
            {
                name: nn.Conv2d(3, shape.channels, shape.stride, shape.stride)
                for name, shape in input_shape.items()
            }
        )

    def forward(self, images):
        return {name: conv(images) for name, conv in self.convs.items()}


@pytest.fixture
def make_model(input_shape, head):
    def make(**options):
        torch.manual_seed(0)
        return MaskFormerSegmentor(
            backbone=_Backbone(input_shape),
            sem_seg_head=head,
            criterion=SetCriterion(
                num_classes=7,
                matcher=HungarianMatcher(),
                weight_dict={"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0},
            ),
            pixel_mean=[120.0, 115.0, 100.0],
            pixel_std=[58.0, 57.0, 57.0],
            **options,
        )

    return make


def _image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def _instances(height, width, labels, seed=0, wrap=lambda masks: masks):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = wrap(torch.rand(len(labels), height, width, generator=generator) > 0.5)
    return instances


def _batch(wrap=lambda masks: masks):
    """Two images of unequal size, the second without any mask."""
    return [
        {"image": _image(50, 70), "instances": _instances(50, 70, [1, 4], wrap=wrap)},
        {"image": _image(64, 33, seed=1), "instances": _instances(64, 33, [], wrap=wrap)},
    ]


@pytest.mark.parametrize("wrap", [lambda masks: masks, BitMasks])
def test_training_gives_weighted_losses_of_every_layer(make_model, wrap):
    model = make_model().train()
    losses = model(_batch(wrap))
    assert set(losses) == {
        f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")
    }
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.criterion.weight_dict["loss_dice"] = 3.0
    once = model(_batch(wrap))
    model.criterion.weight_dict["loss_dice"] = 6.0
    torch.testing.assert_close(model(_batch(wrap))["loss_dice_1"], 2 * once["loss_dice_1"])


def test_targets_are_padded_to_the_batch(make_model):
    seen = []
    model = make_model(size_divisibility=64).train()
    model.criterion.register_forward_pre_hook(lambda module, args: seen.extend(args[1]))
    batch = _batch()
    model(batch)
    assert [target["masks"].shape for target in seen] == [(2, 64, 128), (0, 64, 128)]
    assert torch.equal(seen[0]["masks"][:, :50, :70], batch[0]["instances"].gt_masks)
    assert not seen[0]["masks"][:, 50:].any() and not seen[0]["masks"][:, :, 70:].any()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("elements", [1, 10**9])
def test_semantic_result_image_by_image(make_model, monkeypatch, first, elements):
    """Against the public order of steps: resize all, combine, crop, resize to what is asked.

    Or, with ``first``, the masks to what is asked before they are combined.
    """
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", elements)
    model = make_model(postprocess_before_inference=first).eval()
    inputs = [{"image": _image(50, 70)}, {"image": _image(64, 33, 1), "height": 90, "width": 40}]
    with torch.no_grad():
        results = model(inputs)
        model.semantic_output = "labels"
        labels = model(inputs)
        images = torch.zeros(2, 3, 64, 96)
        for padded, one in zip(images, inputs):
            image = (one["image"] - model.pixel_mean) / model.pixel_std
            padded[:, : image.shape[1], : image.shape[2]] = image
        outputs = model.sem_seg_head(model.backbone(images))
        masks = F.interpolate(outputs["pred_masks"], (64, 96), mode="bilinear")
    sizes = [((50, 70), (50, 70)), ((64, 33), (90, 40))]
    for index, (size, out_size) in enumerate(sizes):
        if first:
            resized = sem_seg_postprocess(masks[index], size, *out_size)
            expected = semantic_inference(outputs["pred_logits"][index], resized)
        else:
            scores = semantic_inference(outputs["pred_logits"][index], masks[index])
            expected = sem_seg_postprocess(scores, size, *out_size)
        assert list(results[index]) == ["sem_seg"]
        torch.testing.assert_close(results[index]["sem_seg"], expected, atol=1e-5, rtol=1e-5)
        assert labels[index]["sem_seg"].dtype == torch.int32
        best, second = expected.topk(2, dim=0).values
        sure = best - second > 1e-5
        assert torch.equal(labels[index]["sem_seg"][sure].long(), expected.argmax(0)[sure])


def test_an_unknown_semantic_output_is_an_error(make_model):
    with pytest.raises(ValueError, match="SEMANTIC_OUTPUT.*'scores' or 'labels', got 'argmax'"):
        make_model(semantic_output="argmax")


@pytest.mark.parametrize("first", [False, True])
def test_semantic_results_do_not_depend_on_the_others(make_model, first):
    inputs = [{"image": _image(50, 70), "height": 100, "width": 140}]
    options = {"postprocess_before_inference": first, "thing_classes": [0]}
    with torch.no_grad():
        alone = make_model(**options).eval()(inputs)[0]["sem_seg"]
        model = make_model(panoptic_on=True, instance_on=True, **options).eval()
        assert torch.equal(model(inputs)[0]["sem_seg"], alone)


def test_panoptic_within_masks_leaves_pixels_empty(make_model):
    model = make_model(panoptic_on=True, semantic_on=False, thing_classes=[0, 1, 5]).eval()
    assert model.panoptic_merge is merge_by_pixel
    inputs = [{"image": _image(50, 70)}]
    with torch.no_grad():
        everywhere, _ = model(inputs)[0]["panoptic_seg"]
        model.panoptic_merge = merge_by_pixel_within_masks
        within, _ = model(inputs)[0]["panoptic_seg"]
    assert (within == 0).sum() > (everywhere == 0).sum()


def test_all_results_at_once(make_model):
    model = make_model(
        panoptic_on=True, instance_on=True, thing_classes=[0, 1, 5], max_instances=12
    ).eval()
    with torch.no_grad():
        result = model([{"image": _image(50, 70), "height": 25, "width": 35}])[0]
    assert result["sem_seg"].shape == (7, 25, 35)
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == (25, 35)
    assert set(panoptic.unique().tolist()) <= {0, *(segment["id"] for segment in segments)}
    assert len(result["instances"]) == 12 and result["instances"].image_size == (25, 35)
    assert set(result["instances"].pred_classes.tolist()) <= {0, 1, 5}


def test_inference_under_autocast_gives_float32(make_model):
    model = make_model().eval()
    with torch.no_grad():
        exact = model([{"image": _image(50, 70)}])[0]["sem_seg"]
        with torch.autocast("cpu", torch.bfloat16):
            result = model([{"image": _image(50, 70)}])[0]["sem_seg"]
    assert result.dtype == torch.float32
    assert (result - exact).abs().max() < 0.1 * exact.abs().max()


def test_training_needs_instances_of_the_image(make_model):
    model = make_model().train()
    with pytest.raises(ValueError, match=r"image 0 .* has no 'instances' .*\['image'\]"):
        model([{"image": _image(32, 32)}])
    with pytest.raises(ValueError, match=r"masks of image 0 .* \(32, 40\), .* \(32, 32\)"):
        model([{"image": _image(32, 32), "instances": _instances(32, 40, [1])}])
    polygons = Instances((32, 32))
    polygons.gt_classes = torch.tensor([1])
    polygons.gt_masks = PolygonMasks([[[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]]])
    with pytest.raises(ValueError, match="PolygonMasks; set INPUT.MASK_FORMAT to 'bitmask'"):
        model([{"image": _image(32, 32), "instances": polygons}])


@pytest.mark.parametrize("label", [-1, 7, 255])
def test_labels_are_classes_of_the_head(make_model, label):
    batch = _batch()
    batch[1]["instances"] = _instances(64, 33, [0, label, 6])
    message = f"image 1 .* has the label {label}, .* classes 0 to 6; .*HEAD.NUM_CLASSES"
    with pytest.raises(ValueError, match=message):
        make_model().train()(batch)


def test_instances_of_detectron2s_mapper(make_model):
    """It gives masks only where MODEL.MASK_ON says so, and none with no instances."""
    model = make_model().train()
    boxes = Instances((32, 32))
    boxes.gt_classes = torch.tensor([1])
    boxes.gt_boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    message = r"image 0 .* no gt_masks, only \['gt_boxes', 'gt_classes'\].*MODEL.MASK_ON.*MAPPER"
    with pytest.raises(ValueError, match=message):
        model([{"image": _image(32, 32), "instances": boxes}])
    nothing = {"image": _image(32, 32), "instances": boxes[:0]}
    losses = model([nothing, {"image": _image(32, 32), "instances": _instances(32, 32, [1])}])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_panoptic_results_need_thing_classes(make_model):
    with pytest.raises(ValueError, match="thing_dataset_id_to_contiguous_id"):
        make_model(panoptic_on=True)


def _small_config():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.merge_from_file(str(R101))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 8
    return cfg


def test_build_from_config():
    cfg = _small_config()
    metadata = MetadataCatalog.get("mask_classification_test_things")
    metadata.thing_dataset_id_to_contiguous_id = {7: 0, 9: 3}
    cfg.DATASETS.TRAIN = (metadata.name,)
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT = "labels"
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 7.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    model = build_model(cfg)
    assert isinstance(model, MaskFormerSegmentor)
    assert model.thing_classes == {0, 3}
    assert model.criterion.weight_dict["loss_dice"] == model.criterion.matcher.dice_weight == 7.0
    assert model.device == torch.device("cpu")
    losses = model.train()(_batch())
    assert len(losses) == 6
    with torch.no_grad():
        result = model.eval()([{"image": _image(40, 50)}])[0]
    assert result["sem_seg"].shape == (40, 50) and len(result["instances"]) == 4


@pytest.fixture
def parts_of_others():
    """A criterion and a rule of merging, registered as another package does it."""

    class DoubledCriterion(SetCriterion):
        def weighted(self, losses):
            return {name: 2 * loss for name, loss in super().weighted(losses).items()}

    def merge_all(class_logits, mask_logits, *, thing_classes, resize, **thresholds):
        size = resize(strips.Strips.of(mask_logits)).shape[1:]
        segment = {"id": 1, "isthing": 0 in thing_classes, "category_id": 0}
        return torch.ones(size, dtype=torch.int32), [segment]

    parts = {CRITERION_REGISTRY: DoubledCriterion, PANOPTIC_MERGE_REGISTRY: merge_all}
    for registry, part in parts.items():
        registry.register(part)
    yield
    for registry, part in parts.items():
        registry._obj_map.pop(part.__name__)


def test_criterion_and_merging_rule_can_be_chosen(parts_of_others):
    cfg = _small_config()
    metadata = MetadataCatalog.get("mask_classification_test_choices")
    metadata.thing_dataset_id_to_contiguous_id = {1: 0}
    cfg.DATASETS.TRAIN = (metadata.name,)
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    default = build_model(cfg).train()
    assert default.panoptic_merge is merge_by_pixel and type(default.criterion) is SetCriterion
    cfg.MODEL.MASK_FORMER.CRITERION_NAME = "DoubledCriterion"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_MERGE = "merge_all"
    model = build_model(cfg).train()
    model.load_state_dict(default.state_dict())
    expected = {name: 2 * loss for name, loss in default(_batch()).items()}
    torch.testing.assert_close(model(_batch()), expected)
    with torch.no_grad():
        panoptic, segments = model.eval()([{"image": _image(40, 50)}])[0]["panoptic_seg"]
    assert panoptic.shape == (40, 50) and (panoptic == 1).all() and segments[0]["isthing"]


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("CRITERION_NAME", "PointSetCriterion, SetCriterion"),
        ("TEST.PANOPTIC_MERGE", "merge_by_pixel, merge_by_pixel_within_masks"),
    ],
)
def test_unknown_choices(key, known):
    cfg = _small_config()
    cfg.merge_from_list([f"MODEL.MASK_FORMER.{key}", "other"])
    with pytest.raises(ValueError, match=f"MASK_FORMER.{key} is 'other'; registered: {known}"):
        build_model(cfg)


def test_a_dataset_without_things_leaves_them_unknown():
    assert build_model(_small_config()).thing_classes is None


@pytest.mark.parametrize(
    "dataset, things",
    [
        ("shapes_sem_seg_train", range(4, 9)),  # whose annotations number them from 0
        ("shapes_instance_train", range(5)),
        ("cityscapes_fine_sem_seg_train", range(11, 19)),  # without ids
        ("cityscapes_fine_panoptic_train", range(11, 19)),  # thing_classes repeat all classes
        ("coco_2017_train_panoptic", range(80)),
        ("ade20k_sem_seg_train", None),
    ],
)
def test_things_are_numbered_as_the_classes(dataset, things):
    cfg = _small_config()
    cfg.DATASETS.TRAIN = (dataset,)
    expected = None if things is None else set(things)
    assert build_model(cfg).thing_classes == expected


def test_instance_data_need_not_be_loaded_before_the_model_is_built(tmp_path):
    """Their metadata are filled by loading; all their classes are things either way."""
    name, file = f"lazy_{tmp_path.name}", tmp_path / "instances.json"
    categories = [{"id": id, "name": str(id)} for id in (3, 5, 6, 8, 9)]
    image = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}
    file.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    register_coco_instances(name, {}, str(file), str(tmp_path))
    cfg = _small_config()
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    results = []
    for known in (None, set(range(5))):
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        assert model.thing_classes == known
        with torch.no_grad():
            results.append(model([{"image": _image(40, 50)}])[0]["instances"])
        DatasetCatalog.get(name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    assert torch.equal(results[0].pred_classes, results[1].pred_classes)
    assert torch.equal(results[0].scores, results[1].scores)


def test_parameters_are_those_of_the_public_model():
    if not KEYS.exists():
        pytest.skip("the reference names are not here")
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.merge_from_file(str(R101))
    cfg.MODEL.DEVICE = "cpu"
    ours = {f"{name} {tuple(value.shape)}" for name, value in build_model(cfg).state_dict().items()}
    assert ours == set(KEYS.read_text().strip().splitlines())
