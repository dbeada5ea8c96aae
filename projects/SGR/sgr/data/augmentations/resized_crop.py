"""Resizing and cropping in one step."""

from __future__ import annotations

import math

import numpy as np
from detectron2.data import transforms as T
from PIL import Image


class Resize(T.Augmentation):
    """An augmentation that resizes, but leaves at least one pixel along each side.

    Detectron2's own resize a strip of 9000x2 pixels to a width of 0, which is an error.
    """

    def __init__(self, resize: T.Augmentation):
        """
        Args:
            resize: an augmentation of Detectron2 that resizes.
        """
        super().__init__()
        self.resize = resize
        self.input_args = ("image",)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _with_a_pixel(self.resize.get_transform(image))


class ResizedCrop(T.Augmentation):
    """An augmentation that resizes and one that crops, in one step.

    It draws the same random numbers as the two, in the same order, and has the same results, see
    :class:`ResizedCropTransform`.

    Example::

        ResizedCrop(
            T.ResizeShortestEdge([256, 512, 1024], 2048, "choice"),
            T.RandomCrop("absolute", (512, 512)),
        )
    """

    def __init__(self, resize: T.Augmentation, crop: T.Augmentation):
        """
        Args:
            resize: an augmentation of Detectron2 that resizes. Its ``get_transform`` may only look
                at the shape of the image.
            crop: an augmentation of Detectron2 that crops. Its ``get_transform`` may only look at
                the shape of the image and at ``sem_seg``.

        :meth:`get_transform` raises TypeError if ``resize`` does not only resize.
        """
        super().__init__()
        self.resize = resize
        self.crop = crop
        self.input_args = ("image", "sem_seg") if _looks_at_labels(crop) else ("image",)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None = None) -> T.Transform:
        resize = _with_a_pixel(self.resize.get_transform(image))
        if isinstance(resize, T.NoOpTransform):
            resize = T.ResizeTransform(*image.shape[:2], *image.shape[:2])
        elif not isinstance(resize, T.ResizeTransform):
            raise TypeError(f"{self.resize} does not resize only: it made a {resize}")
        shape_alone = np.empty((resize.new_h, resize.new_w, 0), image.dtype)
        if sem_seg is not None and _looks_at_labels(self.crop):
            crop = self.crop.get_transform(shape_alone, _read_nearest(sem_seg, resize))
        else:
            crop = self.crop.get_transform(shape_alone)
        if isinstance(crop, T.TransformList):  # FixedSizeCrop has a list of one, or two to pad
            crop, *rest = crop.transforms
            return T.TransformList([ResizedCropTransform(resize, crop), *rest])
        return ResizedCropTransform(resize, crop)


class ResizedCropTransform(T.Transform):
    """A ``ResizeTransform`` followed by a ``CropTransform``, with less work.

    The results are equal to the last bit. Pillow resizes bytes in two passes, first along the rows.
    The weights of a pass only depend on the lengths before and after. So this resizes only the rows
    that the crop needs along the rows, and then only the columns of the crop along the columns. For
    a crop of 768x768 from 2048x4096 this is a quarter of the work.

    Images that get smaller are resized as a whole: Pillow 13 begins with the columns of some of
    them, which would change some bytes by one, and there is less to gain. Segmentations are read at
    the pixels of the crop only.
    """

    def __init__(self, resize: T.ResizeTransform, crop: T.CropTransform):
        """``crop`` is of the resized image. Its parts outside of the image are left out."""
        super().__init__()
        self.resize = resize
        self.crop = crop
        # CropTransform is a slice, which may end outside.
        self.rows = slice(crop.y0, min(crop.y0 + crop.h, resize.new_h))
        self.columns = slice(crop.x0, min(crop.x0 + crop.w, resize.new_w))

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """``img`` is (H, W, 3) uint8. ``ResizeTransform`` itself resizes other images.

        An image of another size than the transform's raises a ValueError.
        """
        resize = self.resize
        _check_size(img, resize)
        in_bytes = img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3
        rows_first = resize.interp == Image.Resampling.BILINEAR and resize.new_h >= resize.h
        if not (in_bytes and rows_first):
            return self.crop.apply_image(resize.apply_image(img))
        rows, columns = self.rows, self.columns
        first, last = _rows_under(rows, resize.h, resize.new_h)
        band = Image.fromarray(img[first:last])
        band = band.resize((resize.new_w, last - first), Image.Resampling.BILINEAR)
        # The band at its place in an image of full height. The rest is black and not used.
        strip = band.crop((columns.start, -first, columns.stop, resize.h - first))
        strip = strip.resize((strip.width, resize.new_h), Image.Resampling.BILINEAR)
        return np.asarray(strip.crop((0, rows.start, strip.width, rows.stop)))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) uint8; ``ResizeTransform`` itself resizes other types."""
        resize = self.resize
        if segmentation.dtype != np.uint8:
            return self.crop.apply_segmentation(resize.apply_segmentation(segmentation))
        return _read_nearest(segmentation, resize, self.rows, self.columns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.crop.apply_coords(self.resize.apply_coords(coords))

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return self.crop.apply_polygons(self.resize.apply_polygons(polygons))


def _with_a_pixel(transform: T.Transform) -> T.Transform:
    if not isinstance(transform, T.ResizeTransform) or (transform.new_h and transform.new_w):
        return transform
    size = max(transform.new_h, 1), max(transform.new_w, 1)
    return T.ResizeTransform(transform.h, transform.w, *size, transform.interp)


def _looks_at_labels(crop: T.Augmentation) -> bool:
    return isinstance(crop, T.RandomCrop_CategoryAreaConstraint)


def _rows_under(rows: slice, length: int, new_length: int) -> tuple[int, int]:
    """The range of rows, [first, last), that these rows of the larger image depend on."""
    scale = length / new_length
    # One more row at each side for the bilinear filter, and one for rounding.
    first = math.floor((rows.start + 0.5) * scale - 2)
    last = math.ceil((rows.stop - 0.5) * scale + 2)
    return max(first, 0), min(last, length)


def _read_nearest(
    segmentation: np.ndarray,
    resize: T.ResizeTransform,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> np.ndarray:
    """These rows and columns of the resized map, of any type."""
    _check_size(segmentation, resize)
    segmentation = segmentation.take(_nearest(resize.h, resize.new_h)[rows], axis=0)
    return segmentation.take(_nearest(resize.w, resize.new_w)[columns], axis=1)


def _check_size(array: np.ndarray, resize: T.ResizeTransform) -> None:
    if array.shape[:2] != (resize.h, resize.w):
        raise ValueError(
            f"a transform of {resize.h} x {resize.w} pixels (height x width) got "
            f"{array.shape[0]} x {array.shape[1]}"
        )


def _nearest(length: int, new_length: int) -> np.ndarray:
    """(new_length,) int32: the index of the pixel that Pillow takes, by Pillow's own arithmetic."""
    ruler = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ruler.resize((new_length, 1), Image.Resampling.NEAREST))[0]
