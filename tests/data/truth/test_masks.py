import numpy as np
import pycocotools.mask as mask_util
import pytest

from sgr.data.truth.masks import clip_polygon, to_rle, valid_polygons


def test_polygons_that_enclose_nothing():
    corner = [0, 0, 4, 0, 4, 4]
    assert [each.tolist() for each in valid_polygons([[1, 2, 3, 4], corner, [0] * 7])] == [corner]
    assert valid_polygons(None) == [] and to_rle([[0, 0, 1, 1]], (5, 5)) is None


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (60, 80), (500, 700)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_pixels_of_codes(shape, share):
    """Noise and whole images: runs of one and of many digits, and differences of either sign."""
    rng = np.random.default_rng(0)
    mask = np.asfortranarray(rng.random(shape) < share, np.uint8)
    mask[shape[0] // 2 :] |= np.uint8(share > 0)
    code = mask_util.encode(mask)
    assert to_rle(code, shape) is code
    text = {**code, "counts": code["counts"].decode()}
    assert to_rle(text, shape) is text
    for size in ((shape[0] + 1, shape[1]), (shape[0], shape[1] + 2)):
        with pytest.raises(ValueError, match=rf"has {mask.size} pixels, .* wants {np.prod(size)}"):
            to_rle({**code, "size": size}, tuple(size))


@pytest.mark.parametrize("counts, pixels", [([5, 30], 35), ([], 0), ([5, 31, 0, 2], 38)])
def test_plain_codes_that_do_not_fill_their_size(counts, pixels):
    with pytest.raises(ValueError, match=rf"has {pixels} pixels, but its size, 9 x 4, wants 36"):
        to_rle({"size": [4, 9], "counts": counts}, (4, 9))


def drawn(polygon, size):
    """As pycocotools does, which is safe for numbers of this size."""
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects([list(polygon)], *size)))


def test_clipping_does_not_change_the_mask():
    rng = np.random.default_rng(0)
    size = (40, 60)
    differ = clipped = 0
    for _ in range(200):
        polygon = rng.normal(0, 3000, 2 * rng.integers(3, 12)) + 30
        clipped += clip_polygon(polygon, size) is not polygon
        differ += int((mask_util.decode(to_rle([polygon], size)) != drawn(polygon, size)).sum())
    assert clipped > 150
    assert differ < 200 * 40 * 60 / 5000  # rounding where a side enters the image


def test_a_polygon_near_the_image_is_left_as_it_is():
    polygon = np.array([-900.0, -900, 900, -900, 1, 900])
    assert clip_polygon(polygon, (40, 60)) is polygon


@pytest.mark.parametrize(
    "polygon, area",
    [
        ([0, 0, 1e9, 0, 1e9, 1e9], 64 * 63 / 2),
        ([0, 0, 1e300, 0, 1e300, 1e300], 64 * 63 / 2),
        ([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9], 64 * 64),
        ([1e9, 1e9, 2e9, 1e9, 2e9, 2e9], 0),
        ([2**31 - 1] * 6, 0),
    ],
)
def test_polygons_far_beyond_the_image(polygon, area):
    """Drawn by pycocotools as they are, they end the process without a message."""
    assert abs(int(mask_util.area(to_rle([polygon], (64, 64)))) - area) <= 64


def test_an_outline_that_is_too_long():
    zigzag = np.stack([np.arange(2000) % 2 * 1e5, np.arange(2000) % 3], axis=1).ravel()
    for size in [(64, 64), (10**9, 10**9)]:
        if size == (64, 64):  # clipped
            to_rle([zigzag], size)
        else:
            with pytest.raises(ValueError, match="outline of 2e\\+08 pixels"):
                to_rle([zigzag], size)


def test_sizes_are_compared_before_anything_is_decoded():
    for counts in ("0", b"0", [10**18], [0]):
        with pytest.raises(ValueError, match="the mask is 1000000000 x 1000000000"):
            to_rle({"size": [10**9, 10**9], "counts": counts}, (64, 64))
        with pytest.raises(ValueError, match="run-length code has"):
            to_rle({"size": [64, 64], "counts": counts}, (64, 64))
