import itertools
import json
import logging
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from sgr.config import add_sgr_config
from sgr.evaluation import (
    CityscapesMeanIoUEvaluator,
    FastCOCOEvaluator,
    MeanIoUEvaluator,
    PanopticQualityEvaluator,
    ThingCOCOEvaluator,
    TokenSemanticsEvaluator,
    build_evaluator,
)
from sgr.evaluation.build import EVALUATOR_REGISTRY, measurable
from sgr.modeling.reasoning.concept_regions import ConceptRegions


@pytest.fixture
def register(tmp_path):
    name = f"build_{tmp_path.name}"

    def register(records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def config(tmp_path, tokens, meta_arch="ConceptSemanticSegmentor"):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.TEST.TOKENS.ENABLED = tokens
    return cfg


@pytest.mark.parametrize("ignore_label", [3, 255])
def test_semantic_segmentation(register, tmp_path, ignore_label):
    labels = np.array([[0, 0, 1, 1], [0, 2, 2, ignore_label]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    name = register(
        [record],
        evaluator_type="sem_seg",
        stuff_classes=["sky", "road", "car"],
        ignore_label=ignore_label,
    )
    evaluator = build_evaluator(config(tmp_path, tokens=True), name)
    assert isinstance(evaluator, DatasetEvaluators)

    predicted = torch.tensor([[0, 0, 1, 0], [0, 2, 2, 1]])
    scores = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
    regions = ConceptRegions(torch.zeros(1, 5, 1, 2), stride=2)
    evaluator.reset()
    evaluator.process(
        [{"file_name": "a.jpg", "image": torch.zeros(3, 2, 4)}],
        [{"sem_seg": scores, "concept_regions": regions}],
    )
    results = evaluator.evaluate()

    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (3 / 4 + 1 / 2 + 1) / 3)
    assert results["tokens"]["images_C"] == 1
    assert (tmp_path / "inference" / "tokens.json").is_file()


def test_coco(register, tmp_path):
    annotation = {
        "bbox": [2.0, 2.0, 20.0, 20.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]],
        "iscrowd": 0,
    }
    record = {"file_name": "a.jpg", "image_id": 1, "height": 32, "width": 32}
    name = register(
        [{**record, "annotations": [annotation]}], evaluator_type="coco", thing_classes=["thing"]
    )
    cfg = config(tmp_path, tokens=True, meta_arch="ConceptGeneralizedRCNN")
    evaluator = build_evaluator(cfg, name, str(tmp_path / "out"))

    instances = Instances((32, 32))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 22, 22]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 2:22, 2:22] = True
    instances.pred_masks = mask
    regions = ConceptRegions(torch.zeros(1, 5, 2, 2), stride=16)
    evaluator.reset()
    evaluator.process(
        [{**record, "image": torch.zeros(3, 32, 32)}],
        [{"instances": instances, "concept_regions": regions}],
    )
    results = evaluator.evaluate()

    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["tokens"]["S_I"] == 0


def test_without_tokens_there_is_only_the_tasks_evaluator(register, tmp_path):
    name = register([], evaluator_type="sem_seg", stuff_classes=["a"], ignore_label=255)
    assert type(build_evaluator(config(tmp_path, tokens=False), name)) is MeanIoUEvaluator
    evaluators = build_evaluator(config(tmp_path, tokens=True), name)._evaluators
    assert [type(evaluator) for evaluator in evaluators] == [
        MeanIoUEvaluator,
        TokenSemanticsEvaluator,
    ]


def test_boundary_iou_by_a_key(panoptic, tmp_path):
    name = panoptic()
    cfg = mask_classifier(tmp_path, "SEMANTIC", "PANOPTIC")
    cfg.TEST.BOUNDARY_IOU.ENABLED = True
    assert boundary_ratios(build_evaluator(cfg, name)) == [0.02]
    cfg.TEST.BOUNDARY_IOU.ENABLED = False
    assert boundary_ratios(build_evaluator(cfg, name)) == [None]


def boundary_ratios(evaluator):
    each = evaluator._evaluators
    return [part._boundary_ratio for part in each if isinstance(part, MeanIoUEvaluator)]


@pytest.mark.parametrize("metadata", [{}, {"evaluator_type": "lvis"}])
def test_unknown_evaluator_types_are_named(register, tmp_path, metadata):
    name = register([], **metadata)
    with pytest.raises(ValueError, match=r"evaluator_type (None|'lvis'), known are \[.*'coco'"):
        build_evaluator(config(tmp_path, tokens=True), name)


@pytest.mark.parametrize(
    "meta_arch, on_coco, on_panoptic",
    [
        ("GeneralizedRCNN", FastCOCOEvaluator, [ThingCOCOEvaluator]),
        ("ConceptGeneralizedRCNN", FastCOCOEvaluator, [ThingCOCOEvaluator]),
        ("RetinaNet", FastCOCOEvaluator, [ThingCOCOEvaluator]),
        ("PanopticFPN", FastCOCOEvaluator, [MeanIoUEvaluator, ThingCOCOEvaluator]),
        ("ProposalNetwork", FastCOCOEvaluator, [MeanIoUEvaluator]),  # as any unknown one
        ("SomebodysModel", FastCOCOEvaluator, [MeanIoUEvaluator]),
        ("SemanticSegmentor", None, [MeanIoUEvaluator]),
        ("ConceptSemanticSegmentor", None, [MeanIoUEvaluator]),
    ],
)
def test_a_model_is_measured_by_what_it_puts_out(
    panoptic, tmp_path, meta_arch, on_coco, on_panoptic
):
    name = panoptic(evaluator_type="coco")
    cfg = config(tmp_path, tokens=False, meta_arch=meta_arch)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    if on_coco is not None:
        assert types_of(build_evaluator(cfg, name)) == [on_coco]
    else:
        message = (
            f"nothing to evaluate on {name}, whose evaluator_type is 'coco': {meta_arch} puts out "
            "no instances. TEST.TOKENS.ENABLED True"
        )
        with pytest.raises(ValueError, match=message):
            build_evaluator(cfg, name)
    vars(MetadataCatalog.get(name)).update(evaluator_type="coco_panoptic_seg")
    assert types_of(build_evaluator(cfg, name)) == on_panoptic


@pytest.mark.parametrize(
    "meta_arch, on, evaluator_type, said",
    [
        ("ConceptSemanticSegmentor", (), "coco", "no AP: .*Segmentor puts out no instances"),
        # No advice to switch on what a semantic model cannot give.
        ("ConceptMaskFormerSegmentor", ("SEMANTIC",), "coco", "no AP: .* puts out no instances$"),
        ("ConceptMaskFormerSegmentor", (), "sem_seg", "no mIoU: .* puts out no sem_seg$"),
        ("ConceptGeneralizedRCNN", (), "sem_seg", "no mIoU: .*RCNN puts out no sem_seg"),
        ("ConceptGeneralizedRCNN", (), "coco_panoptic_seg", "or AP: .*AP, since .* no json_file"),
    ],
)
def test_tokens_are_measured_where_nothing_else_can_be(
    panoptic, tmp_path, caplog, meta_arch, on, evaluator_type, said
):
    name = panoptic(evaluator_type=evaluator_type, json_file=None)
    cfg = mask_classifier(tmp_path, *on, meta_arch=meta_arch)
    with pytest.raises(ValueError, match=name):
        build_evaluator(cfg, name)
    cfg.TEST.TOKENS.ENABLED = True
    assert types_of(build_evaluator(cfg, name)) == [TokenSemanticsEvaluator]
    (record,) = [each for each in caplog.records if "Only the token metrics" in each.message]
    assert record.levelname == "WARNING" and re.search(said, record.message), record.message
    assert name in record.message


@pytest.mark.parametrize(
    "tokens, said",
    [
        (False, "Only the metrics of Further are measured, and no AP: "),
        (True, "Only the token metrics and the metrics of Further are measured, and no AP: "),
    ],
)
def test_further_evaluators_are_measured_where_nothing_else_can_be(
    panoptic, tmp_path, caplog, monkeypatch, tokens, said
):
    class Further(DatasetEvaluator):
        def __init__(self, dataset_name, output_dir):
            pass

    name = panoptic(evaluator_type="coco")
    cfg = config(tmp_path, tokens)
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "Further", Further)
    cfg.TEST.EVALUATORS = ["Further"]
    evaluators = [TokenSemanticsEvaluator] * tokens + [Further]
    assert types_of(build_evaluator(cfg, name)) == evaluators
    (message,) = [each for each in caplog.messages if each.startswith("Only")]
    assert message.startswith(said)


def test_several_datasets_do_not_write_over_each_other(panoptic, tmp_path):
    name = panoptic(evaluator_type="sem_seg")
    cfg = config(tmp_path, tokens=True)
    for datasets, folder in (((name,), ()), ((name, "other"), (name,))):
        cfg.DATASETS.TEST = datasets
        for evaluator in build_evaluator(cfg, name)._evaluators:
            assert evaluator._output_dir == str(tmp_path.joinpath("inference", *folder))


def test_detectron2s_cityscapes_is_measured_over_its_19_classes(register, tmp_path):
    """Its own loader and metadata, on a tree of one image."""
    images, labels = tmp_path / "leftImg8bit" / "bonn", tmp_path / "gtFine" / "bonn"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    truth = np.array([[0, 18, 255, 0]], np.uint8)
    (images / "a_leftImg8bit.png").touch()
    for kind in ("instanceIds", "labelIds"):
        Image.fromarray(np.zeros((1, 4), np.uint8)).save(labels / f"a_gtFine_{kind}.png")
    Image.fromarray(truth).save(labels / "a_gtFine_labelTrainIds.png")
    size = {"imgHeight": 1, "imgWidth": 4}
    (labels / "a_gtFine_polygons.json").write_text(json.dumps(size))
    records = load_cityscapes_semantic(str(images.parent), str(labels.parent))
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_val").as_dict()
    name = register(records, **{key: metadata[key] for key in metadata if key != "name"})

    evaluator = build_evaluator(config(tmp_path, tokens=False), name)
    assert type(evaluator) is CityscapesMeanIoUEvaluator
    predicted = torch.tensor([[0, 18, 3, 18]])
    scores = torch.nn.functional.one_hot(predicted, 19).permute(2, 0, 1).float()
    evaluator.reset()
    evaluator.process([records[0]], [{"sem_seg": scores}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == results["IoU"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)


PANOPTIC = ["coco_panoptic_seg", "ade20k_panoptic_seg", "cityscapes_panoptic_seg"]


@pytest.fixture
def panoptic(register, tmp_path):
    """Registers one panoptic record; returns a function (**metadata) -> name."""
    coco = {"images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}]}
    coco.update(annotations=[], categories=[{"id": 7, "name": "a"}])
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    record = {
        "file_name": "a.jpg",
        "sem_seg_file_name": "b.png",
        "pan_seg_file_name": "a.png",
        "segments_info": [],
    }

    def build(without=(), **metadata):
        return register(
            [{key: value for key, value in record.items() if key not in without}],
            **{
                "evaluator_type": "coco_panoptic_seg",
                "stuff_classes": ["a", "b"],
                "thing_classes": ["a", "b"],
                "thing_dataset_id_to_contiguous_id": {7: 0},
                "ignore_label": 255,
                "json_file": str(tmp_path / "instances.json"),
                **metadata,
            },
        )

    return build


def mask_classifier(tmp_path, *on, meta_arch="ConceptMaskFormerSegmentor"):
    cfg = config(tmp_path, tokens=False)
    cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    for result in ("SEMANTIC", "PANOPTIC", "INSTANCE"):
        cfg.MODEL.MASK_FORMER.TEST[f"{result}_ON"] = result in on
    return cfg


def types_of(evaluator):
    return [type(each) for each in getattr(evaluator, "_evaluators", [evaluator])]


@pytest.mark.parametrize("evaluator_type", PANOPTIC)
@pytest.mark.parametrize("meta_arch", ["MaskFormerSegmentor", "ConceptMaskFormerSegmentor"])
def test_what_is_switched_on_is_measured(panoptic, tmp_path, evaluator_type, meta_arch):
    name = panoptic(evaluator_type=evaluator_type)
    kinds = {
        "SEMANTIC": MeanIoUEvaluator,
        "PANOPTIC": PanopticQualityEvaluator,
        "INSTANCE": ThingCOCOEvaluator,
    }
    for count in (1, 2, 3):
        for on in itertools.combinations(kinds, count):
            cfg = mask_classifier(tmp_path, *on, meta_arch=meta_arch)
            assert types_of(build_evaluator(cfg, name)) == [kinds[each] for each in on]
    cfg.TEST.TOKENS.ENABLED = True
    assert types_of(build_evaluator(cfg, name)) == [*kinds.values(), TokenSemanticsEvaluator]


def test_nothing_switched_on(panoptic, register, tmp_path):
    name = panoptic()
    with pytest.raises(ValueError, match=f"{name}.*SEMANTIC_ON or PANOPTIC_ON or INSTANCE_ON of "):
        build_evaluator(mask_classifier(tmp_path), name)
    vars(MetadataCatalog.get(name)).update(evaluator_type="coco")
    with pytest.raises(ValueError, match=f"{name}.*'coco': .*; set INSTANCE_ON of MODEL.MASK_F"):
        build_evaluator(mask_classifier(tmp_path, "SEMANTIC", "PANOPTIC"), name)
    cfg = mask_classifier(tmp_path, "SEMANTIC", "INSTANCE")
    assert types_of(build_evaluator(cfg, name)) == [FastCOCOEvaluator]


@pytest.mark.parametrize(
    "change, dropped, why",
    [
        (
            {"without": ["sem_seg_file_name"], "stuff_classes": list("abc")},
            "SEMANTIC",
            "segments have 3 classes and the model has 2",
        ),
        ({"stuff_classes": list("abc")}, "SEMANTIC", "label maps have 3 classes and the model"),
        ({"json_file": None}, "INSTANCE", "no json_file"),
    ],
)
def test_what_a_panoptic_dataset_does_not_tell(panoptic, tmp_path, caplog, change, dropped, why):
    name = panoptic(**change)
    with caplog.at_level(logging.INFO):
        evaluator = build_evaluator(mask_classifier(tmp_path, dropped, "PANOPTIC"), name)
    assert types_of(evaluator) == [PanopticQualityEvaluator] and why in caplog.text
    with pytest.raises(ValueError, match=f"{name} cannot serve.*{why}"):
        build_evaluator(mask_classifier(tmp_path, dropped), name)


@pytest.mark.parametrize(
    "evaluator_type, serves, lacks",
    [
        ("sem_seg", "SEMANTIC", {"PANOPTIC": "panoptic quality", "INSTANCE": "AP"}),
        ("coco", "INSTANCE", {"SEMANTIC": "mIoU", "PANOPTIC": "panoptic quality"}),
    ],
)
def test_what_is_switched_on_for_another_kind_of_dataset_is_said(
    panoptic, tmp_path, caplog, evaluator_type, serves, lacks
):
    name = panoptic(evaluator_type=evaluator_type)
    with caplog.at_level(logging.INFO):
        build_evaluator(mask_classifier(tmp_path, serves), name)
        assert "Not measured" not in caplog.text
        build_evaluator(mask_classifier(tmp_path, serves, *lacks), name)
    (line,) = [each for each in caplog.messages if "Not measured" in each]
    whys = [f"{what}, since its evaluator_type is '{evaluator_type}'" for what in lacks.values()]
    assert line == f"Not measured on {name}: {' and '.join(whys)}"


def test_separated_panoptic_datasets_have_no_segments(panoptic, tmp_path):
    name = panoptic(without=["pan_seg_file_name", "segments_info"])
    with pytest.raises(ValueError, match="a.jpg in build_.*standard, not its separated form"):
        build_evaluator(mask_classifier(tmp_path, "PANOPTIC"), name)


@pytest.mark.parametrize("evaluator_type", PANOPTIC)
@pytest.mark.parametrize(
    "meta_arch, message",
    [
        ("SemanticSegmentor", "cannot serve to measure mIoU, since .* without sem_seg_file_name"),
        ("SomebodysModel", "records without sem_seg_file_name, or pan_.*: mIoU"),
    ],
)
def test_miou_needs_label_maps_or_segments(panoptic, tmp_path, evaluator_type, meta_arch, message):
    name = panoptic(evaluator_type=evaluator_type)
    cfg = config(tmp_path, tokens=False, meta_arch=meta_arch)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    assert types_of(build_evaluator(cfg, name)) == [MeanIoUEvaluator]
    (record,) = DatasetCatalog.get(name)
    label_map = record.pop("sem_seg_file_name")
    assert types_of(build_evaluator(cfg, name)) == [MeanIoUEvaluator]
    assert measurable(cfg, name, ["semantic"]) == (["semantic"], {})
    record.pop("segments_info")
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        build_evaluator(cfg, name)
    # As in Detectron2's separated and stuffonly datasets, where classes are those of the maps.
    record.pop("pan_seg_file_name")
    record["sem_seg_file_name"] = label_map
    assert types_of(build_evaluator(cfg, name)) == [MeanIoUEvaluator]


def test_panoptic_quality_and_miou_of_segments_alone(register, tmp_path):
    """As in Detectron2's coco_2017_val_panoptic."""
    ids = np.array([[1, 1, 2, 0]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.png")
    segments = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}]
    record = {"file_name": "a.jpg", "pan_seg_file_name": str(tmp_path / "a.png")}
    name = register(
        [{**record, "segments_info": segments}],
        evaluator_type="coco_panoptic_seg",
        stuff_classes=["thing", "stuff"],
        thing_dataset_id_to_contiguous_id={7: 0},
        ignore_label=255,
    )
    evaluator = build_evaluator(mask_classifier(tmp_path, "SEMANTIC", "PANOPTIC"), name)
    evaluator.reset()
    predicted = torch.tensor([[0, 0, 0, 1]])
    output = {"sem_seg": predicted, "panoptic_seg": (predicted + 1, segments)}
    evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (2 / 3 + 0) / 2)
