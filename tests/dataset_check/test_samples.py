"""The samples on a contact sheet."""

import numpy as np

from checked_records import annotation, of_instances, options, save
from sgr.dataset_check import samples_of


def test_samples(record, instances, tmp_path):
    broken = {**record, "sem_seg_file_name": "none.png"}
    wrong = {**record, "sem_seg_file_name": save(tmp_path / "w.png", np.full((30, 40), 9, "u1"))}
    good, faulty = samples_of([record, broken, wrong], options())
    assert good.name == "a.png" and faulty.name == "a.png (faulty)"
    assert len(good.component_names) == good.components.max() + 1
    assert good.instances is None and (faulty.labels == 3).all()
    instances["annotations"].insert(0, annotation(1, None))
    (sample,) = samples_of([instances], of_instances())
    assert sample.instance_names == ["disc 1", "disc 2", "box"]
    assert sample.instances[22, 33] == 2 and sample.instances[5, 3] == 0
    assert sample.instances[5, 9] == 1 and sample.instances[29, 0] == -1
