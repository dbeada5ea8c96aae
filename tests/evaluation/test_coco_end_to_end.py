"""AP and token metrics of detectors and of segmentation models, from COCO files to results."""

import itertools
import json
import logging
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from sgr.engine import Trainer, evaluate, load_config
from sgr.evaluation import TokenSemanticsEvaluator, build_evaluator
from sgr.modeling.reasoning import ConceptRegions
from tiny_model import CONFIG, tiny_options

CATEGORIES = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}, {"id": 90, "name": "c"}]


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def uncompressed(mask):
    changes = np.flatnonzero(np.diff(mask.flatten(order="F").astype(int), prepend=0))
    counts = np.diff([0, *changes, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def annotation(box, **more):
    x, y, w, h = box
    return {
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [polygon(*box)],
        "category_id": 3,
        **more,
    }


def annotated_images():
    """(height, width), annotations; and for each image its instances by hand, -1 for none."""
    crowd = np.zeros((48, 80), bool)
    crowd[20:, 30:] = True
    hand = np.full((48, 80), -1)
    hand[4:40, 10:50] = 0
    hand[10:20, 20:60] = 1  # the smaller of the two lies on top
    annotations = [
        annotation([10, 4, 40, 36], category_id=90),
        annotation([20, 10, 40, 10]),
        annotation([30, 20, 50, 28], segmentation=uncompressed(crowd), iscrowd=1, category_id=7),
    ]
    yield (48, 80), annotations, hand

    yield (40, 40), [], np.full((40, 40), -1)

    mask = np.zeros((64, 40), bool)
    mask[30:60, 2:20] = True
    hand = np.where(mask, 0, -1)
    hand[5, 5:35] = 1
    annotations = [
        annotation([2, 30, 18, 30], segmentation=uncompressed(mask), category_id=7),
        # The box has no area, the mask has.
        annotation([5, 5, 30, 0], segmentation=uncompressed(hand == 1)),
        annotation([25, 40, 0, 20], segmentation=uncompressed(np.zeros((64, 40), bool))),
    ]
    yield (64, 40), annotations, hand

    crowd = np.ones((48, 48), bool)
    annotations = [annotation([0, 0, 48, 48], segmentation=uncompressed(crowd), iscrowd=1)]
    yield (48, 48), annotations, np.full((48, 48), -1)


@pytest.fixture
def coco(tmp_path):
    """The name of a dataset registered as COCO is, and the folder with its file."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (size, of_image, _) in enumerate(annotated_images()):
        image_id = 100 + 5 * number
        file_name = f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]})
        for each in of_image:
            annotations.append({**each, "id": len(annotations) + 1, "image_id": image_id})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    name = f"coco_{tmp_path.name}"
    register_coco_instances(name, {}, str(tmp_path / "instances.json"), str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


DETECTOR = {
    "MODEL.META_ARCHITECTURE": "ConceptGeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_sgr_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.OUT_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.IN_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.RPN.IN_FEATURES": "['p2','p3','p4','p5','p6']",
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[32],[64],[128],[256],[512]]",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": "['p2','p3','p4','p5']",
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.MASK_ON": True,
    "MODEL.SGR.IN_FEATURES": "['res5']",
    "MODEL.SGR.NUM_CONCEPTS": 8,
    "MODEL.SGR.SUPERVISION.WEIGHT": 0.0,
    "INPUT.MIN_SIZE_TEST": 70,
    "INPUT.MAX_SIZE_TEST": 100,
}


def config(folder, *datasets, base=CONFIG, **more):
    options = {"OUTPUT_DIR": folder, "DATASETS.TEST": str(datasets), **more}
    flat = [str(each) for pair in options.items() for each in pair]
    return load_config(str(base), [*tiny_options(), *flat])


def with_weights(cfg, folder):
    """A model's random weights in a file, for evaluation."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "random.pth")
    cfg.MODEL.WEIGHTS = str(folder / "random.pth")
    return model.eval()


def literal_metrics(model, cfg, name):
    """S_I and D_I by the paper's formulas, pixel by pixel of the images at their own size."""
    hands = [hand for *_, hand in annotated_images()]
    semantics, diversities = [], []
    loader = build_detection_test_loader(cfg, name)
    for hand, inputs in zip(hands, loader, strict=True):
        if (hand < 0).all():
            continue
        with torch.no_grad():
            regions = model(inputs)[0]["concept_regions"]
        probabilities = regions.probabilities[0].double().numpy()
        scale = np.array(inputs[0]["image"].shape[-2:]) / hand.shape
        instances = sorted(set(hand[hand >= 0].tolist()))
        histograms = np.zeros((len(probabilities), len(instances)))
        for y, x in itertools.product(range(hand.shape[0]), range(hand.shape[1])):
            if hand[y, x] >= 0:
                row = int((y + 0.5) * scale[0] // regions.stride)
                column = int((x + 0.5) * scale[1] // regions.stride)
                histograms[:, instances.index(hand[y, x])] += probabilities[:, row, column]
        histograms /= histograms.sum(axis=1, keepdims=True)
        entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in histograms]
        semantics.append(np.mean(entropies))
        distances = ((histograms - histograms.mean(axis=0)) ** 2).sum(axis=1)
        diversities.append(distances.mean())
    return np.mean(semantics), np.mean(diversities)


def test_ap_and_tokens_of_a_detector_in_one_run(coco, tmp_path):
    cfg = config(tmp_path / "out", coco, **DETECTOR)
    model = with_weights(cfg, tmp_path)
    results = evaluate(cfg)

    assert list(results) == ["bbox", "segm", "tokens"]
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP-a", "AP-b", "AP-c"} <= results[task].keys()
        assert 0 <= results[task]["AP"] <= 100
    tokens = results["tokens"]
    semantics, diversity = literal_metrics(model, cfg, coco)
    assert tokens["images_I"] == 2 and "images_C" not in tokens
    assert tokens["S_I"] == pytest.approx(semantics, rel=1e-5)
    assert tokens["D_I"] == pytest.approx(diversity, rel=1e-4)
    inference = tmp_path / "out" / "inference"
    assert json.loads((inference / "tokens.json").read_text()) == tokens
    assert (inference / "coco_instances_results.json").is_file()


def test_a_detector_finds_things_in_its_categories_ids(coco, tmp_path):
    cfg = config(tmp_path / "out", coco, **DETECTOR)
    with_weights(cfg, tmp_path)
    evaluate(cfg)
    written = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert {each["category_id"] for each in written} <= {3, 7, 90}
    sizes = [[*size] for size, *_ in annotated_images()]
    assert all(each["segmentation"]["size"] in sizes for each in written)
    assert mask_util.area([each["segmentation"] for each in written]).any()


@pytest.mark.parametrize("base", ["maskformer_R50_sgr", "fcn_R50_sgr"])
def test_tokens_of_a_segmentation_model_on_instances(coco, tiny_shapes, tmp_path, caplog, base):
    """Of other classes than the instances; alone, and beside its own dataset."""
    base = CONFIG.with_name(f"{base}.yaml")
    cfg = config(tmp_path / "out", coco, base=base)
    model = with_weights(cfg, tmp_path)
    with caplog.at_level(logging.WARNING):
        results = evaluate(cfg)
    assert "Only the token metrics are measured, and no AP" in caplog.text
    assert "sem_seg" not in results and "bbox" not in results
    tokens = results["tokens"]
    semantics, diversity = literal_metrics(model, cfg, coco)
    assert tokens["S_I"] == pytest.approx(semantics, rel=1e-5)
    assert tokens["D_I"] == pytest.approx(diversity, rel=1e-4)

    both = config(tmp_path / "both", "shapes_sem_seg_val", coco, base=base)
    both.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    results = evaluate(both)
    assert list(results) == ["shapes_sem_seg_val", coco]
    assert {"sem_seg", "tokens"} <= results["shapes_sem_seg_val"].keys()
    assert results["shapes_sem_seg_val"]["tokens"]["images_C"] == 5
    assert results[coco]["tokens"] == pytest.approx(tokens)
    for name in results:
        written = json.loads((tmp_path / "both" / "inference" / name / "tokens.json").read_text())
        assert written == results[name]["tokens"]


def test_instances_without_a_mask_are_left_out_with_a_warning(coco, tmp_path, caplog):
    """And their image, if it has no others. AP is that of boxes then."""
    file = tmp_path / "instances.json"
    content = json.loads(file.read_text())
    first, second, crowd, fourth, *_, last = content["annotations"]
    second["segmentation"] = []
    del fourth["segmentation"]
    content["annotations"] = [first, second, crowd, fourth, last]
    file.write_text(json.dumps(content))

    cfg = config(tmp_path / "out", coco, **DETECTOR)
    with_weights(cfg, tmp_path)
    results = evaluate(cfg)
    assert list(results) == ["bbox", "tokens"]
    assert results["tokens"]["images_I"] == 1 and results["tokens"]["S_I"] == 0
    assert f"2 annotated instance(s) of {coco} have no mask" in caplog.text
    assert "AP of masks is not measured: 2 annotation(s)" in caplog.text


def test_real_images(shared, tmp_path):
    """S_I, D_I of random regions: within their bounds, and better for sharper regions."""
    root = shared / "data" / "coco_mini"
    if not root.is_dir():
        pytest.skip("no COCO images there")
    name = f"coco_mini_{tmp_path.name}"
    register_coco_instances(
        name, {}, str(root / "annotations" / "instances_val2017.json"), str(root / "val2017")
    )
    try:
        records = DatasetCatalog.get(name)
        cfg = config(tmp_path, name, **DETECTOR)
        evaluator = build_evaluator(cfg, name)
        assert [type(each).__name__ for each in evaluator._evaluators] == [
            "FastCOCOEvaluator",
            "TokenSemanticsEvaluator",
        ]
        tokens = TokenSemanticsEvaluator(name)
        results = []
        for sharpness in (0.1, 8.0):
            tokens.reset()
            rng = np.random.default_rng(0)
            for record in records:
                image, output = random_regions(rng, record, sharpness)
                tokens.process([{**record, "image": image}], [output])
            results.append(tokens.evaluate()["tokens"])
        smooth, sharp = results
        with_instances = [
            record
            for record in records
            if any(not each["iscrowd"] for each in record["annotations"])
        ]
        most = max(len(record["annotations"]) for record in records)
        for values in results:
            assert values["images_I"] == len(with_instances)
            assert 0 < values["S_I"] < math.log(most) and 0 < values["D_I"] < 1
        assert sharp["S_I"] < smooth["S_I"] and sharp["D_I"] > smooth["D_I"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def random_regions(rng, record, sharpness, stride=32):
    """An empty image, half the record's size, and random regions on it."""
    height, width = record["height"] // 2, record["width"] // 2
    grid = -(-height // stride), -(-width // stride)
    logits = torch.from_numpy(rng.normal(size=(1, 16, *grid)) * sharpness).float()
    return torch.zeros(3, height, width), {"concept_regions": ConceptRegions(logits, stride=stride)}
