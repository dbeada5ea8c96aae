"""What a training with a config would refuse."""

import pytest
from detectron2.data import MetadataCatalog

from checked_records import CLASSES, THINGS, annotation, of_instances, of_segments, options
from sgr.data.faults import FaultKind
from sgr.dataset_check import training_faults, training_mapper

MAPPERS = {
    "mask_former_semantic_concept": "sem_seg_file_name",
    "mask_former_panoptic_concept": "pan_seg_file_name",
    "mask_former_instance_concept": "annotations",
    "detection_concept": "annotations",
}


@pytest.fixture
def metadata():
    MetadataCatalog.get("check_mapper").set(stuff_classes=list(CLASSES), thing_classes=THINGS)
    yield
    MetadataCatalog.remove("check_mapper")


def mapper_and_config(cfg, name, **heads):
    cfg = cfg.clone()
    cfg.INPUT.DATASET_MAPPER_NAME = name
    for head, count in heads.items():
        cfg.MODEL[head].NUM_CLASSES = count
    return training_mapper("check_mapper", cfg), cfg


@pytest.mark.parametrize("name", MAPPERS)
@pytest.mark.parametrize("truth", sorted(set(MAPPERS.values())))
def test_truth_that_the_mapper_learns_from(cfg, metadata, name, truth):
    mapper, cfg = mapper_and_config(cfg, name, SEM_SEG_HEAD=3, ROI_HEADS=2)
    checks = {
        "sem_seg_file_name": options(),
        "pan_seg_file_name": of_segments(),
        "annotations": of_instances(),
    }
    for is_trained_on in (True, False):
        faults, _ = training_faults(mapper, [], checks[truth], cfg, is_trained_on=is_trained_on)
        if truth == MAPPERS[name] or not is_trained_on:
            assert faults == []
        else:
            (fault,) = faults
            assert fault.kind is FaultKind.TRAINING
            assert f"{name!r} learns from" in fault.message and truth in fault.message


def test_annotations_that_the_mapper_refuses(cfg, metadata):
    record = {"file_name": "a.png", "annotations": [annotation(0, None)]}
    for name, refused in (("mask_former_instance_concept", True), ("detection_concept", False)):
        mapper, changed = mapper_and_config(cfg, name, ROI_HEADS=2)
        check = of_instances()
        faults, _ = training_faults(mapper, [record], check, changed, is_trained_on=True)
        assert len(faults) == refused
        assert not refused or "annotation 0 of a.png has no segmentation" in faults[0].message


def test_number_of_classes(cfg, metadata):
    name = "mask_former_semantic_concept"
    for count, is_wrong in ((3, False), (4, True), (0, False)):
        mapper, changed = mapper_and_config(cfg, name, SEM_SEG_HEAD=count)
        faults, warnings = training_faults(mapper, [], options(), changed, is_trained_on=False)
        assert len(faults) == is_wrong and not warnings
        assert not is_wrong or "is 4, but the dataset has 3 stuff_classes" in faults[0].message
    with pytest.raises(ValueError, match="NUM_CLASSES is 2, but the dataset check_mapper has 3"):
        mapper_and_config(cfg, name, SEM_SEG_HEAD=2)
    mapper, changed = mapper_and_config(cfg, "detection_concept", ROI_HEADS=9)
    faults, warnings = training_faults(mapper, [], of_instances(), changed, is_trained_on=True)
    assert not faults and "MODEL.ROI_HEADS.NUM_CLASSES is 9, but the dataset has 2" in warnings[0]
    mapper, changed = mapper_and_config(cfg, "detectron2_default", SEM_SEG_HEAD=9)
    assert training_faults(mapper, [], options(), changed, is_trained_on=True) == ([], [])
