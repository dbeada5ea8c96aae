"""ADE20K, scene parsing: 150 classes, 20210 training and 2000 validation images.

This replaces the loaders of Detectron2's ``ade20k_sem_seg_train`` and ``ade20k_sem_seg_val``, which
leave out an image whose label map is missing. Here this is an error. It also adds colours.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .missing import datasets_root
from .pairs import load_sem_seg_dataset
from .registration import replace_builtin

# The palette of the release, three bytes per class in the order of the labels.
_PALETTE = bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33"
    "ff06528fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff"
    "08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ff"
    "eb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff"
    "0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad"
    "0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa"
    "8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3"
    "ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff"
    "00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)
ADE20K_COLORS = [list(_PALETTE[i : i + 3]) for i in range(0, len(_PALETTE), 3)]

HOW_TO_GET_ADE20K = """
ADE20K is expected as the release for scene parsing, ADEChallengeData2016.zip
(http://sceneparsing.csail.mit.edu), unpacked into the root of all datasets:
    ADEChallengeData2016/
      images/{training,validation}/NAME.jpg
      annotations/{training,validation}/NAME.png
      annotations_detectron2/{training,validation}/NAME.png
The last folder is not in it but made by
    python datasets/prepare_ade20k.py
which goes on where it was broken off.
"""

# The split's name in the datasets' names, and in the folders'.
_SPLITS = {"train": "training", "val": "validation"}


def load_ade20k(split: str) -> list[dict]:
    """Load the records of ADE20K, "train" or "val", see :func:`~.pairs.load_sem_seg_pairs`.

    Raises:
        FileNotFoundError: the split is not there, or an image has no label map.
    """
    return load_sem_seg_dataset(_paths(split), HOW_TO_GET_ADE20K)


def _paths(split: str) -> dict[str, Path]:
    folder = datasets_root() / "ADEChallengeData2016"
    return {
        "image_root": folder / "images" / _SPLITS[split],
        "sem_seg_root": folder / "annotations_detectron2" / _SPLITS[split],
    }


for _split in _SPLITS:
    replace_builtin(
        f"ade20k_sem_seg_{_split}",
        partial(load_ade20k, _split),
        partial(_paths, _split),
        stuff_colors=ADE20K_COLORS,
    )
