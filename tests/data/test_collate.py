"""Components made in the workers of a plain PyTorch loader."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import sgr
from sgr.data.components import connected_components
from sgr.modeling.supervision import ComponentMaps


class Scenes(torch.utils.data.Dataset):
    """Label maps of unequal sizes with three classes and ignored pixels."""

    sizes = ((20, 30), (24, 17), (20, 30), (9, 9))

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        labels = np.kron(rng.integers(0, 3, (3, 3)), np.ones((10, 10), int)).astype(np.uint8)
        labels = labels[: self.sizes[index][0], : self.sizes[index][1]].copy()
        labels[0, 0] = 255
        return self.form(torch.full((3, *labels.shape), index + 1.0), labels)


def as_tensors(image, labels):
    return image, torch.from_numpy(labels).long()


def as_dict(image, labels):
    return {"pixel_values": image, "labels": labels, "name": str(int(image[0, 0, 0]))}


def expected(index, **options):
    return connected_components(Scenes(lambda image, labels: labels)[index], **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_components_of_a_batch_and_padding(workers):
    collate = sgr.ComponentCollate(size_divisibility=8, min_area_ratio=0.2, kernel_size=1)
    loader = DataLoader(Scenes(as_tensors), batch_size=2, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert len(batches) == 2
    for batch, ((images, labels), component_maps) in enumerate(batches):
        assert isinstance(component_maps, ComponentMaps)
        assert images.shape[2:] == labels.shape[1:] == (24, 32)
        for place, index in enumerate((2 * batch, 2 * batch + 1)):
            height, width = Scenes.sizes[index]
            found = component_maps.indices[place]
            truth = expected(index, min_area_ratio=0.2, kernel_size=1)
            assert np.array_equal(found.numpy(), truth.indices)
            assert component_maps.counts[place] == len(truth.classes) > 0
            assert (images[place, :, :height, :width] == index + 1).all()
            assert images[place].sum() == 3 * height * width * (index + 1)
            item = Scenes(as_tensors)[index][1]
            assert torch.equal(labels[place, :height, :width], item)
            assert (labels[place] == 255).sum() == labels[place].numel() - height * width + 1


def test_dicts_and_arrays():
    items = [Scenes(as_dict)[index] for index in (0, 1)]
    batch, component_maps = sgr.ComponentCollate("labels", ignore_label=7)(items)
    assert batch["name"] == ["1", "2"] and batch["labels"].dtype == torch.uint8
    assert batch["labels"][0, 20:].unique().tolist() == [7]
    assert component_maps.counts == [len(expected(i, ignore_label=7).classes) for i in (0, 1)]


def test_an_index_from_the_end():
    items = [Scenes(as_tensors)[index] for index in (0, 1)]
    (_, labels), _ = sgr.ComponentCollate(-1)(items)
    (_, expected_labels), _ = sgr.ComponentCollate(1)(items)
    assert torch.equal(labels, expected_labels) and (labels[0, 20:] == 255).all()


def test_an_ignored_label_that_the_type_cannot_hold():
    items = [Scenes(lambda image, labels: (image, labels))[index] for index in (0, 1)]
    (_, labels), _ = sgr.ComponentCollate(ignore_label=-1, size_divisibility=4)(items)
    assert labels.dtype == torch.int64 and (labels[0, 20:] == -1).all()


def test_a_collate_of_ones_own_and_a_function():
    items = [Scenes(lambda image, labels: (image, {"map": Image.fromarray(labels)}))[0]] * 2
    collate = sgr.ComponentCollate(lambda item: item[1]["map"], collate_fn=list)
    batch, component_maps = collate(items)
    assert batch == items
    assert np.array_equal(component_maps.indices[1].numpy(), expected(0).indices)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="labels is a function.*collate_fn"):
        sgr.ComponentCollate(lambda item: item[1])
    with pytest.raises(ValueError, match=r"\(H, W\), not \(1, 4, 4\)"):
        sgr.ComponentCollate()([(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))])
