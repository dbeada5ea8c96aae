"""The report of a dataset as text."""

from __future__ import annotations

import numpy as np
from tabulate import tabulate

from ..data.class_tree import ClassTree
from ..data.faults import list_faults_by_kind
from .options import TRUTH_KEYS
from .report import Report

# The number of labels that are no class and get a row each.
_SHOWN = 10


def tell(report: Report) -> str:
    """The figures of a dataset, its classes and its faults, with tables in Markdown."""
    parts = [_title(report), _figures(report), _classes(report), _tree(report), _things(report)]
    warnings = report.all_warnings()
    if warnings:
        parts.append(
            "\n".join([f"Warnings: {len(warnings)}", *(f"- {warning}" for warning in warnings)])
        )
    parts.append(_faults(report))
    return "\n\n".join(part for part in parts if part)


def _title(report: Report) -> str:
    truth = ", ".join(TRUTH_KEYS[key] for key in report.options.truth)
    images = _counted(report.num_records, "image")
    if report.num_checked < report.num_records:
        images = f"{report.num_checked} of {images}"
    return f"{report.name}: {images}, {truth}"


def _figures(report: Report) -> str:
    options = report.options
    rows = []
    if report.sizes:
        for name, values in zip(("height", "width"), np.array(report.sizes).T):
            text = str(values.min())
            if values.min() < values.max():
                text += f" to {values.max()}, median {np.median(values):g}"
            rows.append((f"image {name}", text))
    if report.num_pixels:
        rows.append(("pixels ignored", f"{report.share_ignored:.2%}"))
    outside = sorted(report.outside_pixels.items())
    for label, count in outside[:_SHOWN]:
        images = _counted(report.outside_images[label], "image")
        rows.append((f"label {label}, no class", f"{_counted(count, 'pixel')} in {images}"))
    if len(outside) > _SHOWN:
        labels = f"{len(outside) - _SHOWN}, up to {outside[-1][0]}"
        rows.append(("further labels, no class", labels))
    if report.num_components:
        values = np.array(report.num_components)
        rows += [
            (
                "components per image",
                f"mean {values.mean():.1f}, 95th percentile {np.percentile(values, 95):g}, "
                f"max {values.max()}",
            ),
            (f"images with more than L = {options.max_active}", f"{report.share_over:.2%}"),
        ]
    if options.thing_names:
        text = f"{report.instances.sum()} in {_counted(report.images_with_thing, 'image')}"
        if report.crowds.any():
            text += f", and {_counted(report.crowds.sum(), 'crowd')}"
        rows.append(("instances", text))
    return tabulate(rows, ("", ""), "pipe", disable_numparse=True)


def _classes(report: Report) -> str:
    """A row per class, with its instances if these have the same classes."""
    options = report.options
    headers = ["label", "class", "images", "% of pixels", "components"]
    columns = [
        range(len(options.class_names)),
        options.class_names,
        report.images_with.tolist(),
        (100 * report.pixels / max(1, report.num_pixels)).tolist(),
        (report.components / np.maximum(report.images_with, 1)).tolist(),
    ]
    if _is_joint(report):
        more_headers, more = _instance_columns(report)
        headers += more_headers
        # Stuff and the background, which is the last class, have no instances.
        things = options.thing_ids or range(len(options.thing_names))
        columns += [
            [column[index] if index in things else None for index in columns[0]] for column in more
        ]
    rows = list(zip(*columns))
    if len(report.absent_classes()) <= 10:  # then a warning names them all
        rows = [row for row in rows if any(row[2:])]
    if not rows:
        return ""
    floats = ["", "", "", ".2f", ".2f", *[""] * (len(headers) - 5)]
    # A name may look like a number.
    table = tabulate(rows, headers, "pipe", floatfmt=floats, disable_numparse=[1])
    return (
        f"{table}\n\nComponents are those of whole images, larger than "
        f"{options.min_area_ratio:.0%} of the largest; training makes them of crops. The table "
        f"has the mean over the images with the class, of the {options.max_active} largest of each."
    )


def _tree(report: Report) -> str:
    """The tree of the classes, if there is one; one that is wrong is among the faults."""
    options = report.options
    if options.class_tree is None:
        return ""
    try:
        tree = ClassTree.parse(options.class_tree, options.class_names)
    except ValueError:
        return ""
    sizes = " + ".join(map(str, tree.sizes))
    return f"Tree of the classes, {sizes} nodes:\n\n{tree.draw()}"


def _things(report: Report) -> str:
    """A row per category of things, if label maps have other classes."""
    names = report.options.thing_names
    if not names or _is_joint(report):
        return ""
    headers, columns = _instance_columns(report)
    images = report.images_with_instance.tolist()
    rows = list(zip(range(len(names)), names, images, *columns))
    return tabulate(rows, ["category", "thing", "images", *headers], "pipe", disable_numparse=[1])


def _is_joint(report: Report) -> bool:
    """Whether instances have the same classes as the pixels."""
    options = report.options
    return bool(options.thing_names) and (
        options.truth == ("annotations",) or "annotations" not in options.truth
    )


def _instance_columns(report: Report) -> tuple[list[str], list[list[int]]]:
    columns = {"instances": report.instances}
    if report.crowds.any():
        columns["crowds"] = report.crowds
    if report.without_mask.any():
        columns["without mask"] = report.without_mask
    return list(columns), [column.tolist() for column in columns.values()]


def _faults(report: Report) -> str:
    if not report.faults:
        return "Errors: none"
    faults = list_faults_by_kind(report.faults, shown=5, headings=True)
    return f"Errors: {len(report.faults)}\n{faults}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
