"""Datasets. Importing this package registers them with Detectron2."""

from . import ade20k, camvid, cityscapes, coco, coco_stuff_10k, shapes
