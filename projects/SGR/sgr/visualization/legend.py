"""The legend of a page of pictures: a coloured patch for each class that they show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..data.colors import UNLABELLED

__all__ = ["Legend"]

_ROW = 0.19
# Inches per letter; and of the patch and the gaps.
_LETTER, _PATCH = 0.07, 0.5


class Legend:
    """Names and colours of those of N classes that occur, to stand at the bottom of a figure.

    Its height is known before there is a figure. Without an entry it is 0.
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
            labels: that occur; those outside of [0, N) are unlabelled.
            class_names: N names; ``class_colors`` (N, 3) uint8, RGB.
            width: of the figure, inches.
            numbered: whether labels stand before the names.
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
        """Inches."""
        return _ROW * self.num_rows + 0.1 if self.entries else 0.0

    def draw(self, figure: Figure) -> None:
        """Put it at the bottom of a figure."""
        if not self.entries:
            return
        figure.legend(
            handles=[
                Patch(facecolor=np.asarray(color) / 255, edgecolor="0.4", linewidth=0.5, label=name)
                for name, color in self.entries
            ],
            loc="lower center",
            ncols=-(-len(self.entries) // self.num_rows),
            fontsize=8,
            frameon=False,
            borderaxespad=0.5,
            handlelength=1.4,
            columnspacing=1.2,
            labelspacing=0.35,
        )
