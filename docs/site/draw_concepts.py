#!/usr/bin/env python
"""Draw the pictures of docs/concepts.md: docs/concepts_*.jpg.

    python docs/site/draw_concepts.py [--output docs]

The scene and its regions are drawn by hand. Components, histograms, S and D are computed from them
by the functions that training and evaluation use.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import ConnectionPatch
from scipy.ndimage import gaussian_filter

from sgr.data.components import connected_components
from sgr.evaluation.token_metrics import diversity, label_histograms, semantics

SIZE, STRIDE = 192, 16
CLASSES = ["sky", "grass", "disc"]
COLORS = np.array([[116, 178, 238], [80, 164, 66], [226, 60, 70]]) / 255
SKY, GRASS, DISC = range(3)
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image (H, W, 3), its classes (H, W), and its instances (H, W), -1 for none."""
    horizon = 92 + 12 * np.sin(COLUMNS / 30)
    classes = np.where(horizon > ROWS, SKY, GRASS)
    instances = np.full((SIZE, SIZE), -1)
    for number, (x, y, radius) in enumerate([(52, 58, 30), (140, 126, 38)]):
        inside = (COLUMNS - x) ** 2 + (ROWS - y) ** 2 < radius**2
        classes[inside], instances[inside] = DISC, number
    texture = 0.04 * np.random.default_rng(0).standard_normal((SIZE, SIZE, 1))
    shade = 0.85 + 0.25 * (1 - ROWS[..., None] / SIZE)
    return np.clip(COLORS[classes] * shade + texture, 0, 1), classes, instances


def region(mask: np.ndarray, sigma: float = 0.5) -> np.ndarray:
    """(h, w) weights in [0, 1]: the share of the mask in each cell, a little blurred."""
    cells = mask.reshape(SIZE // STRIDE, STRIDE, SIZE // STRIDE, STRIDE).mean(axis=(1, 3))
    return gaussian_filter(cells.astype(float), sigma).clip(0, 1)


def show(axes, image: np.ndarray, title: str, weights: np.ndarray | None = None) -> None:
    """An image, and the weights of a region as heat over it."""
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, loc="left")
    if weights is None:
        axes.imshow(image)
        return
    axes.imshow(np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6)
    large = weights.repeat(STRIDE, 0).repeat(STRIDE, 1)
    axes.imshow(large, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.75 * large)


def draw_pipeline(file: Path) -> None:
    """Pixels, concept regions, tokens, reasoning, and back."""
    image, classes, instances = scene()
    masks = [classes == SKY, instances == 0, instances == 1, classes == GRASS]
    regions = np.stack([region(mask) for mask in masks])
    features = np.stack([region(image[..., channel], 0) for channel in range(3)])
    features = np.concatenate([features, features**2 - 0.3, 1 - features[::-1]])  # 9 channels
    tokens = np.einsum("khw,chw->kc", regions, features)
    tokens /= np.abs(tokens).max(axis=1, keepdims=True)
    heat = plt.get_cmap("tab10").colors
    figure, axes = plt.subplots(2, 3, figsize=(6.6, 4.7), layout="constrained")
    show(axes[0, 0], image, "1  image")

    axes[0, 1].set_title("2  K concept regions", fontsize=10, loc="left")
    axes[0, 1].set_axis_off()
    for index, weights in enumerate(regions):
        inset = axes[0, 1].inset_axes((0.52 * (index % 2), 0.52 * (1 - index // 2), 0.48, 0.48))
        inset.axis("on")
        show(inset, image, "", weights)
        inset.add_patch(
            plt.Rectangle((0, 0), SIZE - 1, SIZE - 1, fill=False, lw=3, color=heat[index])
        )

    def draw_tokens(panel, values, title, right=""):
        panel.set_title(title, fontsize=10, loc="left")
        panel.imshow(values, cmap="coolwarm", vmin=-1, vmax=1, aspect="auto")
        panel.set(xticks=[], yticks=range(len(values)))
        panel.set_yticklabels([f"token {i + 1}" for i in range(len(values))], fontsize=8)
        for index, label in enumerate(panel.get_yticklabels()):
            label.set_color(heat[index])
        panel.set_xlabel("D channels", fontsize=8)

    draw_tokens(axes[0, 2], tokens, "3  K tokens")

    panel = axes[1, 0]
    panel.set_title("4  reasoning between tokens", fontsize=10, loc="left")
    panel.set(xlim=(-0.35, 1.35), ylim=(-0.35, 1.35))
    panel.set_axis_off()
    places = [(0, 1), (1, 1), (1, 0), (0, 0)]
    for i, start in enumerate(places):
        for end in places[i + 1 :]:
            panel.add_patch(ConnectionPatch(start, end, "data", "data", color="grey", lw=1.5))
    for index, (x, y) in enumerate(places):
        panel.plot(x, y, "o", ms=24, color=heat[index])
        panel.text(x, y, str(index + 1), color="white", ha="center", va="center", weight="bold")
    mixed = 0.7 * tokens + 0.3 * tokens.mean(axis=0)
    draw_tokens(axes[1, 1], mixed, "5  tokens that know the others")
    back = np.einsum("khw,kc->hwc", regions, np.array(heat)[: len(regions)])
    show(axes[1, 2], back.repeat(STRIDE, 0).repeat(STRIDE, 1).clip(0, 1), "6  back to the cells")
    figure.savefig(file, dpi=150, pil_kwargs={"quality": 88})
    plt.close(figure)


def draw_components(file: Path) -> None:
    """Labels of classes and their connected components."""
    image, classes, _ = scene()
    components = connected_components(classes)
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.6), layout="constrained")
    show(axes[0], image, "image")
    show(axes[1], COLORS[classes], f"labels: {len(np.unique(classes))} classes")
    palette = plt.get_cmap("Set2").colors[: len(components.classes)]
    axes[2].imshow(np.zeros_like(image))
    show(axes[2], np.array([*palette, (1, 1, 1)])[components.indices], f"{len(palette)} components")
    for index, label in enumerate(components.classes):
        rows, columns = np.nonzero(components.indices == index)
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        axes[2].text(columns[middle], rows[middle], CLASSES[label], ha="center", fontsize=9)
    figure.savefig(file, dpi=150, pil_kwargs={"quality": 88})
    plt.close(figure)


def draw_metrics(file: Path) -> None:
    """What S and D are low and high for."""
    image, classes, instances = scene()
    masks = (classes == SKY, classes == GRASS, instances == 0, instances == 1)
    sky, grass, first, second = ((region(mask, 0) > 0.85).astype(float) for mask in masks)
    both, whole = first + second, np.ones_like(sky)
    same = np.stack([whole, 0.8 * whole, 0.6 * whole])
    different = np.stack([sky, grass, both])
    rows = [
        ("S_C", "several classes", [whole], "one class", [second], classes),
        ("S_I", "two instances", [both], "one instance", [second], instances),
        ("D_C", "tokens alike", same, "tokens differ", different, classes),
    ]
    figure, axes = plt.subplots(3, 4, figsize=(6.6, 6), layout="constrained")
    for panels, (name, bad, bad_regions, good, good_regions, labels) in zip(axes, rows):
        for column, (words, regions) in enumerate([(bad, bad_regions), (good, good_regions)]):
            tensor = torch.tensor(np.stack(regions), dtype=torch.float32)
            histograms, present, _ = label_histograms(
                tensor, torch.tensor(labels), STRIDE, input_size=(SIZE, SIZE)
            )
            value = (diversity if name[0] == "D" else semantics)(histograms)
            left, right = panels[2 * column : 2 * column + 2]
            if len(regions) == 1:
                show(left, image, words, regions[0])
            else:
                show(left, image, words, np.zeros_like(sky))
                for index, weights in enumerate(regions):
                    inset = left.inset_axes((0.02, 0.68 - 0.33 * index, 0.96, 0.31))
                    inset.set_axis_off()
                    inset.imshow(weights, cmap="inferno", vmin=0, vmax=1, aspect="auto", alpha=0.9)
            left.title.set_fontsize(9)
            names = (
                [f"disc {int(label) + 1}" for label in present]
                if name == "S_I"
                else [CLASSES[label] for label in present]
            )
            tints = (
                [COLORS[label] for label in present] if name != "S_I" else ["#e23c46", "#f59aa0"]
            )
            bottom = np.zeros(len(histograms))
            for each, tint, share in zip(names, tints, histograms.T.numpy()):
                right.bar(
                    range(len(share)), share, bottom=bottom, color=tint, label=each, width=0.7
                )
                bottom += share
            right.set(xticks=[], yticks=[], ylim=(0, 1.5), xlim=(-1, len(histograms)))
            right.spines[:].set_visible(False)
            right.set_title(f"{name} = {float(value):.2f}", fontsize=10, weight="bold")
            right.legend(fontsize=7, ncols=1, loc="upper center", frameon=False)
    figure.savefig(file, dpi=150, pil_kwargs={"quality": 88})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/concepts.md.")
    parser.add_argument("--output", type=Path, default=Path("docs"), metavar="DIR")
    folder = parser.parse_args().output
    draw_pipeline(folder / "concepts_pipeline.jpg")
    draw_components(folder / "concepts_components.jpg")
    draw_metrics(folder / "concepts_metrics.jpg")


if __name__ == "__main__":
    main()
