"""The classes and keys that records are checked against."""

from types import SimpleNamespace

import pytest

from checked_records import options
from sgr.dataset_check import class_faults, options_for


def test_options_of_datasets(cfg):
    semantic = {"stuff_classes": ["a", "b"], "ignore_label": 9, "thing_classes": ["b"]}
    found = options_for([{"file_name": "", "sem_seg_file_name": ""}], semantic, cfg)
    assert found.truth == ("sem_seg_file_name",) and found.class_names == ("a", "b")
    assert (found.thing_names, found.ignore_label, found.max_active) == ((), 9, 64)
    found = options_for([{"annotations": []}, {"sem_seg_file_name": ""}], semantic, cfg)
    assert found.truth == ("sem_seg_file_name", "annotations") and found.thing_names == ("b",)
    found = options_for([{"annotations": []}], semantic, cfg)
    assert found.class_names == ("b", "background")
    panoptic = {**semantic, "thing_dataset_id_to_contiguous_id": {7: 1}}
    found = options_for([{"pan_seg_file_name": ""}], panoptic, cfg)
    assert found.thing_names == ("a", "b") and found.thing_ids == {1}

    with pytest.raises(ValueError, match="it has no record"):
        options_for([], semantic, cfg)
    with pytest.raises(ValueError, match=r"no ground truth .* only \['file_name'\]"):
        options_for([{"file_name": ""}], semantic, cfg)
    with pytest.raises(ValueError, match="must be dicts, not None"):
        options_for([None], semantic, cfg)
    with pytest.raises(ValueError, match="no stuff_classes.*--config-file"):
        options_for([{"sem_seg_file_name": ""}], {}, cfg)
    of_labels = SimpleNamespace(truth_key="sem_seg_file_name", num_classes=7)
    found = options_for([{"sem_seg_file_name": ""}], {}, cfg, mapper=of_labels)
    assert found.class_names == tuple(f"class {label}" for label in range(7))
    with pytest.raises(ValueError, match="no thing_classes"):
        options_for([{"annotations": []}], {}, cfg, mapper=of_labels)
    of_things = SimpleNamespace(truth_key="annotations", num_classes=3)
    found = options_for([{"annotations": []}], {}, cfg, mapper=of_things)
    assert len(found.thing_names) == 3


def test_an_ignored_class():
    (fault,) = class_faults(options(ignore_label=1))
    assert "ignore_label in the metadata is 1, which is one of the 3" in fault.message
    assert class_faults(options()) == []
