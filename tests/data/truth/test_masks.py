import numpy as np
import pycocotools.mask as mask_util
import pytest

from sgr.data.truth.masks import to_rle, valid_polygons


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
    assert to_rle(code, (3, 3)) is code
    text = {**code, "counts": code["counts"].decode()}
    assert to_rle(text, (3, 3)) is text
    for size in ((shape[0] + 1, shape[1]), (shape[0], shape[1] + 2)):
        with pytest.raises(ValueError, match=rf"has {mask.size} pixels, .* wants {np.prod(size)}"):
            to_rle({**code, "size": size}, (3, 3))


@pytest.mark.parametrize("counts, pixels", [([5, 30], 35), ([], 0), ([5, 31, 0, 2], 38)])
def test_plain_codes_that_do_not_fill_their_size(counts, pixels):
    with pytest.raises(ValueError, match=rf"has {pixels} pixels, but its size, 9 x 4, wants 36"):
        to_rle({"size": [4, 9], "counts": counts}, (3, 3))
