import numpy as np
import pytest

from sgr.visualization import draw_beside, draw_regions_beside, overlay_heat, region_tile_size


@pytest.mark.parametrize("size", [(401, 533), (90, 120), (2000, 1501)])
def test_the_size_follows_from_the_pictures(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    tile = region_tile_size(size)
    pictures = [
        draw_regions_beside(image, image, rng.random((3, *shape)), ["a", "b", "c" * length])
        for shape, length in ((tile, 1), ((5, 7), 300))
    ]
    assert pictures[0].shape == pictures[1].shape
    height, width, _ = pictures[0].shape
    assert height % 2 == width % 2 == 0 and 360 <= height <= 1080
    assert abs(width - 2 * height * size[1] / size[0]) < 20  # two columns of half the size


@pytest.mark.parametrize("size", [(2, 3000), (3000, 2)])
def test_strips(size):
    image = np.zeros((*size, 3), np.uint8)
    height, width, _ = draw_regions_beside(image, image, np.zeros((5, 1, 1)), list("abcde")).shape
    assert 360 <= height <= 1080 and width < 12_000


def test_what_is_where():
    image = np.full((400, 400, 3), 90, np.uint8)
    picture = np.full((400, 400, 3), 7, np.uint8)
    regions = np.stack([np.zeros((198, 198)), np.ones((198, 198))])
    result = draw_regions_beside(picture, image, regions, ["zero", "one"])
    assert (result[:, :400] == 7).all()
    small = np.full((198, 198, 3), 90, np.uint8)
    expected = [small, *(overlay_heat(small, region) for region in regions)]
    for (top, left), tile in zip([(0, 404), (202, 404), (0, 606)], expected):
        found = result[top : top + 198, left : left + 198]
        assert (found[30:] == tile[30:]).all()
        assert (found[:12] != tile[:12]).any()  # the title
    assert (result[:, 400:404] == 255).all() and (result[202:, 606:] == 255).all()
    alone = draw_regions_beside(picture, image, regions[:0], [])
    assert (alone == result[:, : alone.shape[1]])[:202].all() and alone.shape == (400, 602, 3)


def test_an_image_beside_its_picture():
    image, picture = (np.full((30, 40, 3), value, np.uint8) for value in (1, 2))
    both = draw_beside(image, picture)
    assert both.shape == (30, 84, 3)
    assert (both[:, :40] == 1).all() and (both[:, 40:44] == 255).all() and (both[:, 44:] == 2).all()


def test_mistakes_are_named():
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="2 regions have 1 names"):
        draw_regions_beside(image, image, np.zeros((2, 4, 4)), ["a"])
    with pytest.raises(ValueError, match=r"\(20, 40, 3\), the image \(40, 40, 3\)"):
        draw_regions_beside(image[:20], image, np.zeros((1, 4, 4)), ["a"])
