"""COCO-Stuff-10K: 80 things and 91 kinds of stuff, 9000 training and 1000 test images.

Registers ``coco_stuff_10k_sem_seg_train`` and ``coco_stuff_10k_sem_seg_test``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ..colors import distinct_colors
from .missing import datasets_root
from .pairs import load_sem_seg_dataset
from .registration import register

# The things in the order of COCO's instance categories, then the stuff in COCO-Stuff's.
COCO_STUFF_CLASSES = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
COCO_STUFF_CLASSES += """
banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other
ceiling-tile cloth clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence
floor-marble floor-other floor-stone floor-tile floor-wood flower fog food-other fruit
furniture-other grass gravel ground-other hill house leaves light mat metal mirror-stuff moss
mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield railing
railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs
stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete
wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind
window-other wood
""".split()

# The supercategories of things, then those of stuff; ``class_tree`` in the metadata.
COCO_STUFF_TREE = {
    "person": ["person"],
    "vehicle": "bicycle car motorcycle airplane bus train truck boat".split(),
    "outdoor": ["traffic light", "fire hydrant", "stop sign", "parking meter", "bench"],
    "animal": "bird cat dog horse sheep cow elephant bear zebra giraffe".split(),
    "accessory": "backpack umbrella handbag tie suitcase".split(),
    "sports": ["frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat"]
    + ["baseball glove", "skateboard", "surfboard", "tennis racket"],
    "kitchen": ["bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"],
    "food": ["banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza"]
    + ["donut", "cake"],
    "furniture": ["chair", "couch", "potted plant", "bed", "dining table", "toilet"],
    "electronic": ["tv", "laptop", "mouse", "remote", "keyboard", "cell phone"],
    "appliance": "microwave oven toaster sink refrigerator".split(),
    "indoor": ["book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"],
    "building": "bridge building-other house roof skyscraper tent".split(),
    "ceiling": "ceiling-other ceiling-tile".split(),
    "floor": "carpet floor-marble floor-other floor-stone floor-tile floor-wood".split(),
    "food-stuff": "food-other fruit salad vegetable".split(),
    "furniture-stuff": (
        "cabinet counter cupboard desk-stuff door-stuff furniture-other light mirror-stuff shelf "
        "stairs table"
    ).split(),
    "ground": (
        "dirt gravel ground-other mud pavement platform playingfield railroad road sand snow"
    ).split(),
    "plant": "branch bush flower grass leaves moss plant-other straw tree".split(),
    "raw-material": "cardboard metal paper plastic".split(),
    "sky": "clouds sky-other".split(),
    "solid": "hill mountain rock solid-other stone wood".split(),
    "structural": "cage fence net railing structural-other".split(),
    "textile": (
        "banner blanket cloth clothes curtain mat napkin pillow rug textile-other towel"
    ).split(),
    "wall": (
        "wall-brick wall-concrete wall-other wall-panel wall-stone wall-tile wall-wood"
    ).split(),
    "water": "fog river sea water-other waterdrops".split(),
    "window": "window-blind window-other".split(),
}

# Things as in COCO; the release has no colours for stuff.
COCO_STUFF_COLORS = [category["color"] for category in COCO_CATEGORIES if category["isthing"]]
COCO_STUFF_COLORS += distinct_colors(len(COCO_STUFF_CLASSES))[len(COCO_STUFF_COLORS) :].tolist()

HOW_TO_GET_COCO_STUFF_10K = """
COCO-Stuff-10K is expected as the release cocostuff-10k-v1.1.zip (GitHub repository
nightrome/cocostuff10k), unpacked into coco/coco_stuff_10k under the root of all datasets:
    coco/coco_stuff_10k/
      images/NAME.jpg  annotations/NAME.mat  imageLists/{train,test}.txt
      images_detectron2/{train,test}/NAME.jpg
      annotations_detectron2/{train,test}/NAME.png
The last two folders are not in it but made by
    python datasets/prepare_coco_stuff_10k.py
which goes on where it was broken off. Users of MaskFormer have the same two folders.
"""


def load_coco_stuff_10k(split: str) -> list[dict]:
    """Load the records of COCO-Stuff-10K, "train" or "test".

    Raises:
        FileNotFoundError: the split is not there, or an image has no label map.
    """
    return load_sem_seg_dataset(_paths(split), HOW_TO_GET_COCO_STUFF_10K)


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "coco" / "coco_stuff_10k"
    return {
        "image_root": folder / "images_detectron2" / split,
        "sem_seg_root": folder / "annotations_detectron2" / split,
    }


for _split in ("train", "test"):
    register(
        f"coco_stuff_10k_sem_seg_{_split}",
        partial(load_coco_stuff_10k, _split),
        partial(_paths, _split),
        stuff_classes=COCO_STUFF_CLASSES,
        stuff_colors=COCO_STUFF_COLORS,
        class_tree=COCO_STUFF_TREE,
        ignore_label=255,
        evaluator_type="sem_seg",
    )
