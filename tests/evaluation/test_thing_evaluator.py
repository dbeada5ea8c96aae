import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from sgr.evaluation import ThingCOCOEvaluator

SIZE = (40, 50)
BOXES = {90: [5, 5, 20, 20], 17: [25, 10, 20, 25]}  # x, y, width, height by the id of the category


@pytest.fixture
def dataset(tmp_path):
    """Things are the classes 1 and 3 of four, in another order than the dataset's ids."""
    categories = [{"id": 17, "name": "cat"}, {"id": 90, "name": "car"}]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": id,
            "iscrowd": 0,
            "bbox": box,
            "area": box[2] * box[3],
            "segmentation": [corners(*box)],
        }
        for number, (id, box) in enumerate(BOXES.items(), start=1)
    ]
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    coco = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    name = f"things_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "instances.json"),
        thing_dataset_id_to_contiguous_id={90: 1, 17: 3},
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def instances(classes):
    """The boxes 90 and 17, and another one, of these classes."""
    boxes = [*BOXES.values(), [0, 0, 9, 9]]
    result = Instances(SIZE)
    result.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]).float())
    result.pred_masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(result.pred_masks, boxes):
        mask[y : y + h, x : x + w] = True
    result.pred_classes = torch.tensor(classes)
    result.scores = torch.tensor([0.9, 0.8, 0.95])
    return result


@pytest.mark.parametrize("names", [["road", "car", "sky", "cat"], ["car", "cat"]])
def test_things_with_gaps_between_their_numbers(dataset, tmp_path, names):
    MetadataCatalog.get(dataset).set(thing_classes=names)
    evaluator = ThingCOCOEvaluator(dataset, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    output = {"instances": instances([1, 3, 2])}  # the last is stuff
    evaluator.process([{"image_id": 1}], [output])
    results = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP-car"] == results[task]["AP-cat"] == pytest.approx(100)
    assert output["instances"].pred_classes.tolist() == [1, 3, 2]

    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances([1, 1, 1000])}])
    results = evaluator.evaluate()["segm"]
    assert results["AP-car"] == pytest.approx(100) and results["AP-cat"] == 0
