"""What the checks of resumed trainings (tests/engine/test_resume.py) do not see of the stream."""

from itertools import count, cycle

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from sgr.data.stream import TrainingStream


def test_pinned_batches(monkeypatch):
    """All tensors of a batch are pinned, also those in Detectron2's structures."""
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self.shape) or self.clone()
    )

    def mapper(record):
        instances = Instances((4, 5), gt_classes=torch.tensor([1, 2]))
        instances.gt_masks = BitMasks(torch.ones(2, 4, 5, dtype=torch.bool))
        instances.gt_boxes = Boxes(torch.ones(2, 4))
        return {"image": torch.zeros(3, 4, 5), "instances": instances, "file_name": "a.jpg"}

    stream = TrainingStream([{}] * 4, mapper, lambda seed: count(), batch_size=2)
    (sample, _) = batch = next(iter(stream))
    assert not pinned
    again = batch.pin_memory()[0]
    assert sorted(pinned) == sorted(2 * [(3, 4, 5), (2,), (2, 4, 5), (2, 4)])
    assert again["file_name"] == "a.jpg" and torch.equal(again["image"], sample["image"])
    instances = again["instances"]
    assert instances.image_size == (4, 5) and instances.gt_classes.tolist() == [1, 2]
    assert type(instances.gt_masks) is BitMasks and instances.gt_masks.tensor.all()
    assert type(instances.gt_boxes) is Boxes


def test_a_state_of_a_larger_dataset():
    def batches(size, state=None):
        records = [{"width": 2 if i % 3 else 1, "height": 1, "id": i} for i in range(size)]
        order = [0, 3, 1, 22, 2, 5, 4, 6, 1, 2]
        stream = TrainingStream(
            records,
            lambda record: record["id"],
            lambda seed: cycle([index for index in order if index < size]),
            batch_size=3,
            group_by_aspect=True,
        )
        if state:
            stream.load_state_dict(state)
        return stream, iter(stream)

    stream, before = batches(23)
    assert next(before) == [1, 22, 2]
    state = stream.state_dict()
    assert [index for kind in state["waiting"] for _, index in kind] == [0, 3]
    state["waiting"][0].append((4, 21))
    _, after = batches(8, state)
    assert all(max(next(after)) < 8 for _ in range(5))
