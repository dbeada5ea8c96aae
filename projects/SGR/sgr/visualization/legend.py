"""The legend of a page of pictures: a coloured patch for each class that occurs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..data.colors import UNLABELLED
from .figure import plain

_ROW = 0.19
# Inches: the width of a letter, and of the patch with its gaps.
_LETTER, _PATCH = 0.07, 0.5


class Legend:
    """Names and colours of the classes that occur, for the bottom of a figure.

    Its height is known before the figure is made. It is 0 if no class occurs.
    """

    def __init__(
        self,
        labels: Collection[int],
        class_names: Sequence[str],
        class_colors: np.ndarray,
        width: float,
        *,
        numbered: bool = False,
    ):
        """
        Args:
            labels: the labels that occur. Those outside of [0, N) are "unlabelled".
            class_names: N names.
            class_colors: (N, 3) uint8, RGB.
            width: the width of the figure, in inches.
            numbered: whether to write the label before each name.
        """
        classes = sorted(label for label in set(labels) if 0 <= label < len(class_names))
        names = [
            f"{label} {class_names[label]}" if numbered else class_names[label] for label in classes
        ]
        self.entries = list(zip(names, (class_colors[label] for label in classes)))
        if len(classes) < len(set(labels)):
            self.entries.append(("unlabelled", UNLABELLED))
        longest = max((len(name) for name, _ in self.entries), default=0)
        in_row = max(1, int(width / (_PATCH + _LETTER * longest)))
        self.num_rows = -(-len(self.entries) // in_row)

    @property
    def height(self) -> float:
        """The height of the legend, in inches."""
        return _ROW * self.num_rows + 0.1 if self.entries else 0.0

    def draw(self, figure: Figure) -> None:
        """Draw the legend at the bottom of a figure."""
        if not self.entries:
            return
        figure.legend(
            handles=[
                Patch(facecolor=np.asarray(color) / 255, edgecolor="0.4", linewidth=0.5)
                for _, color in self.entries
            ],
            labels=[plain(name) for name, _ in self.entries],
            loc="lower center",
            ncols=-(-len(self.entries) // self.num_rows),
            fontsize=8,
            frameon=False,
            borderaxespad=0.5,
            handlelength=1.4,
            columnspacing=1.2,
            labelspacing=0.35,
        )
