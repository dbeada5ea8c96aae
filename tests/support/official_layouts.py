"""Miniature copies of datasets as they are downloaded: official names, folders and label encodings.

Each function writes a few images and label maps below a root of datasets, and returns what the
prepared label maps should hold: {file: (H, W) uint8}, computed pixel by pixel from the official
tables, which are spelt out here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from PIL import Image
from scipy.io import savemat

SIZE = (24, 32)

# Of the numbers 1 to 91, those of things that no image of COCO has.
COCO_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)

# COCO's numbers of the 80 things, and of the 53 kinds of stuff of the panoptic task.
COCO_THINGS = tuple(number for number in range(1, 91) if number not in COCO_ABSENT)
COCO_STUFF = (
    92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148,
    149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, 184, 185, 186,
    187, 188, 189, 190, 191, 192, 193, 194, 195, 196, 197, 198, 199, 200
)  # fmt: skip

# The labels of Cityscapes that are evaluated, in the order of their trainIds.
CITYSCAPES_EVALUATED = (
    7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33
)  # fmt: skip
CITYSCAPES_THINGS = (24, 25, 26, 27, 28, 31, 32, 33)


def write_ade20k(root: Path, *, train: int = 3, val: int = 2, seed: int = 0) -> dict:
    """ADEChallengeData2016: labels 0 (other) to 150."""
    rng = np.random.default_rng(seed)
    folder = root / "ADEChallengeData2016"
    expected = {}
    for split, short, count in [("training", "train", train), ("validation", "val", val)]:
        for number in range(1, count + 1):
            name = f"ADE_{short}_{number:08d}"
            labels = _blocks(rng, range(151)).astype(np.uint8)
            _write_image(folder / "images" / split / f"{name}.jpg", rng)
            _write_labels(folder / "annotations" / split / f"{name}.png", labels)
            expected[folder / "annotations_detectron2" / split / f"{name}.png"] = _each(
                labels, lambda label: 255 if label == 0 else label - 1
            )
    return expected


def write_cityscapes(root: Path, *, splits=("train", "val"), seed: int = 0) -> dict:
    """leftImg8bit and gtFine: two cities per split, two images each, labels 0 to 33."""
    rng = np.random.default_rng(seed)
    folder = root / "cityscapes"
    cities = {"train": ("aachen", "bochum"), "val": ("lindau", "munster"), "test": ("berlin",)}
    expected = {}
    for split in splits:
        for city in cities[split]:
            for frame in (19, 4019):
                name = f"{city}_000000_{frame:06d}"
                labels = _blocks(rng, range(34)).astype(np.uint8)
                truth = folder / "gtFine" / split / city
                _write_image(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", rng)
                _write_labels(truth / f"{name}_gtFine_labelIds.png", labels)
                _write_labels(truth / f"{name}_gtFine_instanceIds.png", labels.astype(np.uint16))
                _write_labels(truth / f"{name}_gtFine_color.png", labels)
                content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": []}
                (truth / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
                expected[truth / f"{name}_gtFine_labelTrainIds.png"] = _each(
                    labels,
                    lambda label: (
                        CITYSCAPES_EVALUATED.index(label) if label in CITYSCAPES_EVALUATED else 255
                    ),
                )
    return expected


def write_coco_stuff_10k(
    root: Path, *, train: int = 3, test: int = 2, form: str = "uint8", seed: int = 0
) -> dict:
    """coco/coco_stuff_10k with labels 0 (unlabelled) to 182.

    Args:
        form: of the label maps: "png", or the type of the numbers in MATLAB files, "uint8",
            "uint16" or "float64".
    """
    rng = np.random.default_rng(seed)
    folder = root / "coco" / "coco_stuff_10k"
    present = [number for number in range(1, 183) if number not in COCO_ABSENT]
    expected, everything = {}, []
    (folder / "imageLists").mkdir(parents=True)
    for split, count in [("train", train), ("test", test)]:
        names = [f"COCO_train2014_{100 * len(split) + i:012d}" for i in range(count)]
        everything += names
        (folder / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            labels = _blocks(rng, [0, *present])
            _write_image(folder / "images" / f"{name}.jpg", rng)
            file = folder / "annotations" / f"{name}.mat"
            if form == "png":
                _write_labels(file.with_suffix(".png"), labels.astype(np.uint8))
            else:
                file.parent.mkdir(exist_ok=True)
                class_names = np.array([f"name {i}" for i in range(182)], object)[:, None]
                content = {"S": labels.astype(form), "names": class_names, "captions": "none"}
                savemat(file, content, do_compression=True)
            expected[folder / "annotations_detectron2" / split / f"{name}.png"] = _each(
                labels, lambda label: 255 if label == 0 else present.index(label)
            )
    (folder / "imageLists" / "all.txt").write_text("\n".join(sorted(everything)) + "\n")
    return expected


def write_cityscapes_panoptic(root: Path, *, splits=("train", "val")) -> None:
    """Add to :func:`write_cityscapes` what csCreatePanopticImgs makes, and instances to do it of.

    Things are two instances, of the left and the right half of the image, but for riders, which are
    a crowd.
    """
    folder = root / "cityscapes" / "gtFine"
    names = {each["id"]: each["name"] for each in CITYSCAPES_CATEGORIES}
    categories = [
        {"id": label, "name": names[label], "isthing": int(label in CITYSCAPES_THINGS)}
        for label in CITYSCAPES_EVALUATED
    ]
    for split in splits:
        annotations = []
        for file in sorted((folder / split).glob("*/*_gtFine_labelIds.png")):
            name = file.name[: -len("_gtFine_labelIds.png")]
            ids = np.asarray(Image.open(file)).astype(np.uint16)
            for row in ids:
                for x, label in enumerate(row):
                    if label in CITYSCAPES_THINGS and label != 25:
                        row[x] = 1000 * label + (x >= SIZE[1] // 2)
            _write_labels(file.with_name(f"{name}_gtFine_instanceIds.png"), ids)
            segments, picture = [], np.zeros((*SIZE, 3), np.uint8)
            for id in np.unique(ids).tolist():
                label = id // 1000 or id
                if label in CITYSCAPES_EVALUATED:
                    picture[ids == id] = (id % 256, id // 256, 0)
                    segments.append(_segment(id, label, ids == id, iscrowd=int(label == 25)))
            panoptic = f"{name}_gtFine_panoptic.png"
            _write_labels(folder / f"cityscapes_panoptic_{split}" / panoptic, picture)
            annotations.append({"image_id": name, "file_name": panoptic, "segments_info": segments})
        images = [{"id": each["image_id"]} for each in annotations]
        _write_json(folder / f"cityscapes_panoptic_{split}.json", images, annotations, categories)


def write_coco(root: Path, *, panoptic: bool = True, seed: int = 0) -> dict:
    """coco, 2017: three training and four validation images, as the four archives unpack.

    Among them are a grey image, one that is turned by its EXIF data, one without things, and crowds
    of things. Segments' ids take all three bytes of a colour.
    """
    rng = np.random.default_rng(seed)
    folder = root / "coco"
    things = [
        {"id": each["id"], "name": each["name"], "supercategory": "thing"}
        for each in COCO_CATEGORIES
        if each["id"] in COCO_THINGS
    ]
    everything = [
        {"id": each["id"], "name": each["name"], "isthing": int(each["id"] in COCO_THINGS)}
        for each in COCO_CATEGORIES
    ]
    expected = {}
    for split, ids in [("train2017", (9, 25, 309022)), ("val2017", (139, 285, 632, 581781))]:
        images, instances, panoptics = [], [], []
        for place, image_id in enumerate(ids):
            name = f"{image_id:012d}"
            file = folder / split / f"{name}.jpg"
            _write_image(file, rng)
            if place == 1:
                Image.open(file).convert("L").save(file)
            if place == 2:
                turn_by_exif(file)
            images.append(
                {"id": image_id, "file_name": file.name, "height": SIZE[0], "width": SIZE[1]}
            )
            # Two of a thing, a crowd of another, two kinds of stuff, and unlabelled pixels.
            categories = [0, *rng.choice(COCO_STUFF, 2, replace=False).tolist()]
            if place != 1:
                thing, other = rng.choice(COCO_THINGS, 2, replace=False).tolist()
                categories += [thing, thing, other]
            numbers = [0, *rng.choice(256**3 - 1, len(categories) - 1, replace=False) + 1]
            places = _blocks(rng, range(len(categories)))
            places[0, : len(categories)] = range(len(categories))  # so that none is left out
            picture = np.zeros((*SIZE, 3), np.uint8)
            segments = []
            for index, (number, category) in enumerate(zip(map(int, numbers), categories)):
                mask = places == index
                picture[mask] = (number % 256, number // 256 % 256, number // 65536)
                if category:
                    crowd = int(index == 5)
                    segments.append(_segment(number, category, mask, iscrowd=crowd))
                if category in COCO_THINGS:
                    annotation = _segment(1000 * image_id + index, category, mask, iscrowd=crowd)
                    x, y, w, h = annotation["bbox"]
                    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                    runs = {"size": list(SIZE), "counts": _runs(mask)}
                    annotation |= {
                        "image_id": image_id, "segmentation": runs if crowd else [polygon]
                    }  # fmt: skip
                    instances.append(annotation)
            panoptics.append(
                {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
            )
            if panoptic:
                _write_labels(folder / f"panoptic_{split}" / f"{name}.png", picture)
                classes = [255, *(
                    0 if each in COCO_THINGS else COCO_STUFF.index(each) + 1
                    for each in categories[1:]
                )]  # fmt: skip
                expected[folder / f"panoptic_stuff_{split}" / f"{name}.png"] = _each(
                    places, classes.__getitem__
                )
        annotations = folder / "annotations"
        _write_json(annotations / f"instances_{split}.json", images, instances, things)
        if panoptic:
            _write_json(annotations / f"panoptic_{split}.json", images, panoptics, everything)
    return expected


def turn_by_exif(file: Path) -> None:
    """Store an image's pixels turned, and an EXIF orientation that turns them back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(np.asarray(Image.open(file)))
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif)


def forget_colors() -> None:
    """Take from the metadata what loading has added, for tests of how they are after import."""
    for name in MetadataCatalog.list():
        if name.startswith(("ade20k_sem_seg_", "cityscapes_fine_sem_seg_")):
            vars(MetadataCatalog.get(name)).pop("stuff_colors", None)


def _blocks(rng: np.random.Generator, labels) -> np.ndarray:
    """(H, W) labels in blocks of 4 x 4 pixels; each label has its turn over several maps."""
    height, width = SIZE[0] // 4, SIZE[1] // 4
    return rng.choice(np.array(list(labels)), (height, width)).repeat(4, 0).repeat(4, 1)


def _each(labels: np.ndarray, convert) -> np.ndarray:
    rows = [[convert(int(label)) for label in row] for row in labels]
    return np.array(rows, np.uint8)


def _segment(id: int, category: int, mask: np.ndarray, *, iscrowd: int) -> dict:
    y, x = (each.tolist() for each in np.nonzero(mask))
    box = [min(x), min(y), max(x) - min(x) + 1, max(y) - min(y) + 1]
    return {
        "id": id, "category_id": category, "area": len(x), "bbox": box, "iscrowd": iscrowd
    }  # fmt: skip


def _runs(mask: np.ndarray) -> list[int]:
    """COCO's run lengths: down the columns, of zeros and ones in turn."""
    counts, last = [0], False
    for value in mask.T.flatten().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def _write_json(file: Path, images: list, annotations: list, categories: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def _write_image(file: Path, rng: np.random.Generator) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(file)


def _write_labels(file: Path, labels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(file)


def file_contents(folder):
    """Bytes and time of change of every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_label_maps(expected):
    """That there are files of these labels, by their paths."""
    assert expected
    for file, labels in expected.items():
        image = Image.open(file)
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), labels)
