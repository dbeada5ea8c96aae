"""Datasets; importing this package registers them with Detectron2."""

from . import camvid, coco_stuff_10k, shapes

__all__ = ["camvid", "coco_stuff_10k", "shapes"]
