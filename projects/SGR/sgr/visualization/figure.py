"""Matplotlib figures that need no display, are laid out in inches, and become arrays.

This module does not use pyplot, so the user's backend and open figures stay as they are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager, get_font
from matplotlib.text import Text

DPI = 110
# Matplotlib brings it along.
_FONT = FontEntry(
    fname=f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", name="DejaVu Sans"
)


def find_font(text: str) -> FontEntry:
    """The font of this machine for a text.

    It is Matplotlib's own, or, if that lacks characters (Chinese, Japanese or Korean ones, say),
    the font with the most of them. It logs a warning if no font has them all.
    """
    return _find_font(frozenset(text) - set("\n\t"))


@functools.lru_cache(maxsize=256)
def _find_font(characters: frozenset[str]) -> FontEntry:
    missing = _missing(_FONT, characters)
    if not missing:
        return _FONT
    # "Last Resort" has a box for each character there is.
    regular = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal" and not entry.name.startswith("Last Resort")
    ]
    best = min([_FONT, *regular], key=lambda entry: len(_missing(entry, missing)))
    left = _missing(best, missing)
    if left:
        logging.getLogger(__name__).warning(
            f"no font of this machine has {''.join(sorted(left))!r}: install one that has, such as "
            "Noto Sans CJK (fonts-noto-cjk), and remove Matplotlib's cache of fonts "
            f"({matplotlib.get_cachedir()})"
        )
    return best


def _missing(entry: FontEntry, characters: frozenset[str]) -> frozenset[str]:
    try:
        font = get_font(entry.fname)
        return frozenset(one for one in characters if not font.get_char_index(ord(one)))
    except (OSError, RuntimeError):  # a font that is gone or damaged
        return characters


def add_fallback_fonts(figure: Figure) -> None:
    """Let the texts of a figure take characters that their font lacks from another one."""
    for text in figure.findobj(Text):
        found = find_font(text.get_text())
        if found is not _FONT:
            text.set_fontfamily([_FONT.name, found.name])


def plain(text: str) -> str:
    """A name from outside for a figure, in which Matplotlib would read "$...$" as a formula."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, ``width`` x ``height`` inches, in which text can be measured."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches, counted from the upper left corner of the figure."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / total_width,
            1 - (top + height) / total_height,
            width / total_width,
            height / total_height,
        )
    )


def picture_axes(
    figure: Figure, picture: np.ndarray, left: float, top: float, width: float, title: str = ""
) -> Axes:
    """Show an (H, W, 3) picture with a title; it is ``width`` inches wide and not distorted."""
    axes = add_axes(figure, left, top, width, width * picture.shape[0] / picture.shape[1])
    axes.imshow(picture, aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(plain(title), fontsize=8.5, pad=4)
    return axes


_svg: ContextVar[Path | None] = ContextVar("svg", default=None)


@contextmanager
def also_as_svg(path: str | Path) -> Iterator[None]:
    """Inside the ``with`` block, what a function of this package draws is written as SVG, too.

    Texts become outlines, and pictures in it stay pictures.
    """
    token = _svg.set(Path(path))
    try:
        yield
    finally:
        _svg.reset(token)


def render(figure: Figure) -> np.ndarray:
    """Draw the figure and return it as an (H, W, 3) uint8 picture, RGB."""
    add_fallback_fonts(figure)
    if svg := _svg.get():
        with matplotlib.rc_context({"svg.hashsalt": "sgr"}):  # the same file each time
            figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
