#!/usr/bin/env python3
"""Make the Shapes dataset: small scenes with stuff, things and both kinds of annotation.

    python datasets/make_shapes.py [--root ROOT] [--num-train N] [--num-val N] [--size S] [--seed S]
                                   [--context]

writes

    ROOT/shapes/
      images/{train,val}/00000.jpg
      sem_seg/{train,val}/00000.png           labels of CLASSES, 255 where ignored
      annotations/instances_{train,val}.json  COCO format, masks as run lengths

A scene is a patchwork of stuff, in which a class usually appears in several places, with things of
five shapes on top. Things of one class often overlap, so that there are fewer components than
instances. The colours of classes overlap; textures and shapes tell them apart.

With --context, labels depend on something anywhere in the scene, which no local feature tells: in a
scene with a star, discs are labelled "box" and boxes "disc", triangles "ring" and rings "triangle".
The images are the same.

The same arguments give the same files, byte for byte with the same versions of NumPy and OpenCV.
Scene number i of a split does not depend on the number of scenes. An existing dataset is left as
it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

STUFF = ["sky", "water", "grass", "wall"]
THINGS = ["disc", "box", "triangle", "star", "ring"]
CLASSES = STUFF + THINGS
IGNORE_LABEL = 255

# The range of hues, in degrees, of the regions or things of a class. Ranges overlap.
HUES = {
    "sky": (185, 225),
    "water": (200, 245),
    "grass": (70, 125),
    "wall": (5, 40),
    "disc": (330, 380),
    "box": (25, 65),
    "triangle": (255, 305),
    "star": (290, 345),
    "ring": (130, 190),
}
# The label of each label in a scene with a star, with --context.
BESIDE_STAR = np.arange(256, dtype=np.uint8)
for _one, _other in (("disc", "box"), ("triangle", "ring")):
    _pair = [CLASSES.index(_one), CLASSES.index(_other)]
    BESIDE_STAR[_pair] = _pair[::-1]
# Increased when the scenes change, so that older files are not taken for the same.
VERSION = 1


def make_shapes(
    root: str | os.PathLike,
    num_train: int = 800,
    num_val: int = 100,
    size: int = 160,
    seed: int = 0,
    context: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the dataset to ``root/shapes``, unless it exists already.

    All files are written to another folder, which gets its name at the end, so an interrupted run
    leaves nothing unfinished, and several may run at a time.

    Args:
        root: folder of all datasets; it is made if it is missing.
        num_train, num_val: number of scenes.
        size: side of the square images in pixels, at least 32.
        seed: seed of the random numbers.
        context: whether labels depend on other things of the scene.
        progress: called with lines of text that report the progress.

    Returns:
        The dataset's folder.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: ``root/shapes`` exists with another content.
    """
    for name, value, least in [
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("size", size, 32),
        ("seed", seed, 0),
    ]:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    counts = {"train": num_train, "val": num_val}
    made_with = {"version": VERSION, **counts, "size": size, "seed": seed}
    if context:
        made_with["context"] = True
    folder = Path(root) / "shapes"
    if folder.exists():
        _check_same(folder, made_with)
        progress(f"{folder} is there already")
        return folder

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".shapes.", dir=folder.parent))
    try:
        for split, count in counts.items():
            _write_split(unfinished, split, count, size, seed, context, progress)
        (unfinished / "made_with.json").write_text(json.dumps(made_with) + "\n")
        # A temporary folder is private, a dataset is not.
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            _check_same(folder, made_with)  # another process has made it meanwhile
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # if it still has this name
    progress(f"wrote {num_train} + {num_val} scenes to {folder}")
    return folder


def _check_same(folder: Path, made_with: dict) -> None:
    way_out = "remove it, or choose another root"
    try:
        found = json.loads((folder / "made_with.json").read_text())
    except (OSError, ValueError):
        raise FileExistsError(f"{folder} was not made by this program; {way_out}") from None
    if found != made_with:
        raise FileExistsError(f"{folder} was made with {found}, not {made_with}; {way_out}")
    for split in ("train", "val"):
        names = [f"{index:05d}" for index in range(made_with[split])]
        files = [folder / "images" / split / f"{name}.jpg" for name in names]
        files += [folder / "sem_seg" / split / f"{name}.png" for name in names]
        files.append(folder / "annotations" / f"instances_{split}.json")
        for file in files:
            if not file.is_file():
                raise FileExistsError(f"{folder} lacks {file}; {way_out}")


def _write_split(
    folder: Path,
    split: str,
    count: int,
    size: int,
    seed: int,
    context: bool,
    progress: Callable[[str], None],
) -> None:
    for kind in ("images", "sem_seg"):
        (folder / kind / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, ["train", "val"].index(split), index])
        image, sem_seg, instances = make_scene(rng, size, context)
        name = f"{index:05d}"
        _write_image(folder / "images" / split / f"{name}.jpg", image[:, :, ::-1])
        _write_image(folder / "sem_seg" / split / f"{name}.png", sem_seg)
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": size, "width": size})
        for label, mask in instances:
            annotation = _annotation(mask, THINGS.index(CLASSES[label]) + 1)
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
        if (index + 1) % 200 == 0 or index + 1 == count:
            progress(f"{split}: {index + 1} of {count} scenes")
    content = {
        "info": {"description": "Shapes, generated by make_shapes.py"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": name, "supercategory": "thing"} for i, name in enumerate(THINGS)
        ],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _write_image(path: Path, image: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), np.ascontiguousarray(image), options):
        raise OSError(f"cannot write {path}")


def _annotation(mask: np.ndarray, category: int) -> dict:
    """COCO annotation of an (H, W) mask. Run lengths are exact, polygons would not be."""
    y, x = np.nonzero(mask)
    left, top = int(x.min()), int(y.min())
    return {
        "category_id": category,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [left, top, int(x.max()) - left + 1, int(y.max()) - top + 1],
        "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
    }


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ..., column by column; the first may be empty."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0] if flat[0] else [], [0], changes, [flat.size]])
    return np.diff(bounds).astype(int).tolist()


def make_scene(
    rng: np.random.Generator, size: int, context: bool = False
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene: (size, size, 3) RGB uint8 image, (size, size) uint8 labels, and things.

    Each visible thing has its label and its (size, size) bool mask of visible pixels. All masks of
    a class together are the pixels of its label. With ``context``, a star in the scene swaps labels
    of other things.
    """
    sem_seg, color = _draw_stuff(rng, size)
    things = _draw_things(rng, sem_seg, color)
    for side in range(4):
        if rng.random() < 0.25:
            np.rot90(sem_seg, side)[: rng.integers(1, max(2, size // 40) + 1)] = IGNORE_LABEL
    # Pixels that are covered later, or ignored, are not visible.
    owner = np.full(sem_seg.shape, -1)
    for number, (_, mask) in enumerate(things):
        owner[mask] = number
    owner[sem_seg == IGNORE_LABEL] = -1
    instances = [
        (label, owner == number) for number, (label, _) in enumerate(things) if number in owner
    ]
    if context and (sem_seg == CLASSES.index("star")).any():
        sem_seg = BESIDE_STAR[sem_seg]
        instances = [(int(BESIDE_STAR[label]), mask) for label, mask in instances]
    return _photograph(rng, color), sem_seg, instances


def _draw_stuff(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) uint8 labels and (size, size, 3) colours: a patchwork with wavy seams."""
    y, x = np.mgrid[:size, :size] / size
    wave = rng.uniform(0.01, 0.03, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    frequency = rng.uniform(8, 20, 2)
    points = np.stack(
        [
            y + wave[0] * np.sin(frequency[0] * x + phase[0]),
            x + wave[1] * np.sin(frequency[1] * y + phase[1]),
        ],
        -1,
    )
    seeds = rng.uniform(0, 1, (rng.integers(6, 11), 2))
    patch = ((points[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)

    # Sky tends to be above, grass and water below. Two to four classes share the patches.
    classes = rng.permutation(len(STUFF))[: rng.integers(2, len(STUFF) + 1)]
    preferred_height = np.array([0.1, 0.8, 0.9, 0.5])[classes]
    weight = np.exp(-2 * np.abs(seeds[:, :1] - preferred_height))
    weight /= weight.sum(1, keepdims=True)
    drawn = (rng.random((len(seeds), 1)) > weight.cumsum(1)[:, :-1]).sum(1)
    sem_seg = classes[drawn][patch].astype(np.uint8)

    color = np.empty((size, size, 3), np.float32)
    for number, label in enumerate(classes[drawn]):
        inside = patch == number
        color[inside] = _paint(rng, STUFF[label], y, x)[inside]
    return sem_seg, color


def _draw_things(
    rng: np.random.Generator, sem_seg: np.ndarray, color: np.ndarray
) -> list[tuple[int, np.ndarray]]:
    """Draw things over labels and colours; returns their labels and full masks, in this order."""
    size = len(sem_seg)
    y, x = np.mgrid[:size, :size] / size
    things = []
    for kind in rng.permutation(len(THINGS))[: rng.integers(1, 4)]:
        label = len(STUFF) + int(kind)
        center = rng.uniform(0.1, 0.9, 2)
        for _ in range(rng.integers(1, 5)):
            radius = rng.uniform(0.07, 0.17)
            mask = _shape_mask(rng, THINGS[kind], center, radius, size)
            if mask.any():
                things.append((label, mask))
            # The next thing is often near enough to touch this one.
            near = center + rng.uniform(-0.25, 0.25, 2)
            center = near.clip(0.05, 0.95) if rng.random() < 0.6 else rng.uniform(0.1, 0.9, 2)
    things = [things[i] for i in rng.permutation(len(things))]
    for label, mask in things:
        sem_seg[mask] = label
        color[mask] = _paint(rng, CLASSES[label], y, x)[mask]
        # A dark rim sets things of a class apart.
        rim = mask & ~cv2.erode(mask.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        color[rim] *= 0.6
    return things


def _shape_mask(
    rng: np.random.Generator, shape: str, center: np.ndarray, radius: float, size: int
) -> np.ndarray:
    """(size, size) bool mask; center (x, y) and radius are relative to the size."""
    turn = rng.uniform(0, 2 * np.pi)
    if shape in ("disc", "ring"):
        y, x = np.mgrid[:size, :size] / size
        distance = np.hypot(x - center[0], y - center[1])
        return (distance < radius) & (distance > (0.5 * radius if shape == "ring" else -1))
    if shape == "box":
        corner = rng.uniform(0.45, 1.1)
        angles = np.array([corner, np.pi - corner, np.pi + corner, -corner])
        reach = np.ones(4)
    elif shape == "triangle":
        angles = np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.2, 0.2, 3)
        reach = np.full(3, 1.1)
    else:
        angles = np.arange(10) * np.pi / 5
        reach = np.tile([1.15, 0.5], 5)
    angles = angles + turn
    corners = center + radius * reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(corners * size).astype(np.int32)], 1)
    return mask.view(bool)


def _paint(rng: np.random.Generator, name: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB colours in [0, 1] with the class's texture, at relative coordinates."""
    low, high = HUES[name]
    hue = rng.uniform(low, high) % 360
    saturation, value = rng.uniform(0.45, 0.85), rng.uniform(0.55, 0.9)
    phase, turn = rng.uniform(0, 2 * np.pi, 2)
    across = np.cos(turn) * x + np.sin(turn) * y
    along = np.cos(turn) * y - np.sin(turn) * x
    if name == "sky":
        saturation, texture = 0.6 * saturation, 0.1 * y
    elif name == "water":
        texture = 0.12 * np.sin(90 * y + 2 * np.sin(12 * x) + phase)
    elif name == "grass":
        blades = rng.normal(size=y.shape).astype(np.float32)
        texture = 0.25 * cv2.GaussianBlur(blades, (0, 0), sigmaX=0.6, sigmaY=1.5)
    elif name == "wall":
        row = np.floor(y * 16)
        column = x * 8 + 0.5 * (row % 2)
        joint = (y * 16 - row < 0.2) | (column - np.floor(column) < 0.1)
        texture = -0.3 * joint
    elif name == "disc":
        texture = 0.15 * np.sin(20 * across + phase)
    elif name == "box":
        texture = 0.15 * np.sign(np.sin(70 * across + phase))
    elif name == "triangle":
        texture = 0.15 * np.sign(np.sin(60 * across) * np.sin(60 * along))
    elif name == "star":
        value, texture = max(value, 0.8), np.zeros_like(y)
    else:
        texture = 0.12 * np.sin(60 * np.arctan2(along - 0.5, across - 0.5) + phase)
    hsv = np.empty((*y.shape, 3), np.float32)
    hsv[..., 0], hsv[..., 1] = hue, saturation
    hsv[..., 2] = (value + texture).clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _photograph(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Light from one side, a soft lens and noise: (H, W, 3) colours in [0, 1] to uint8."""
    size = len(color)
    y, x = np.mgrid[:size, :size] / size - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.1, 0.5) * (np.cos(direction) * x + np.sin(direction) * y)
    image = cv2.GaussianBlur(color, (0, 0), rng.uniform(0.3, 0.7)) * light[:, :, None]
    image += rng.normal(scale=rng.uniform(0.01, 0.04), size=image.shape)
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=os.path.expanduser,  # of the default, too; no shell does it in --root=~/data
        default=os.getenv("DETECTRON2_DATASETS", "datasets"),
        help="folder of all datasets; default: $DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument("--num-train", type=int, default=800, help="default: %(default)s")
    parser.add_argument("--num-val", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=160, help="pixels; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--context", action="store_true", help="a star in the scene swaps labels of other things"
    )
    arguments = vars(parser.parse_args())
    try:
        make_shapes(**arguments, progress=lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        sys.exit(f"make_shapes.py: {error}")


if __name__ == "__main__":
    main()
