"""Names of classes in characters that Matplotlib's own font lacks."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from sgr.visualization import draw_regions_beside
from sgr.visualization.figure import _find_font, find_font, new_figure, render

ROAD = "\u9053\u8def"


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font of this machine that has nothing but these two characters, as full squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "a", "b"])
    builder.setupCharacterMap({ord(ROAD[0]): "a", ord(ROAD[1]): "b"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "a": square, "b": square})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", "a", "b")})
    builder.setupHorizontalHeader(ascent=900, descent=0)
    builder.setupNameTable({"familyName": "Two Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "squares.ttf")
    _find_font.cache_clear()
    yield
    _find_font.cache_clear()


def picture(text):
    figure = new_figure(2, 1)
    figure.text(0.1, 0.4, text, fontsize=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as for a glyph that is missing
        return render(figure)


def test_a_font_that_has_the_characters_is_found(font):
    assert find_font("road, Straße").name == "DejaVu Sans"
    assert find_font(ROAD).name == "Two Squares"
    both = picture(f"road {ROAD}")
    assert (both == 0).all(axis=2).sum() > (picture("road") == 0).all(axis=2).sum() + 500


def test_above_regions_too(font):
    image = np.zeros((360, 480, 3), np.uint8)
    tiles = draw_regions_beside(image, image, np.zeros((1, 4, 4)), [ROAD])
    other = draw_regions_beside(image, image, np.zeros((1, 4, 4)), [""])
    assert (tiles != other).any()


def test_without_such_a_font(caplog, monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [])
    _find_font.cache_clear()
    assert find_font("\U0001f6e3").name == "DejaVu Sans"
    assert "no font of this machine has" in caplog.text
    _find_font.cache_clear()
