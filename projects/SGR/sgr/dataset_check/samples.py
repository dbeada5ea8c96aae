"""The samples on the contact sheet of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.truth.records import read_instance_map
from ..visualization import Sample, class_colors, number_names
from .options import CheckOptions
from .record import examine_record


def samples_of(records: Iterable[dict], options: CheckOptions) -> Iterator[Sample]:
    """Read the image, labels, components and instances of records one by one.

    A sample of a record with a fault has "(faulty)" in its name, and no instances. Records whose
    image or ground truth cannot be drawn are left out.
    """
    for record in records:
        report, maps = examine_record(record, options)
        if maps is None:
            continue
        sample = Sample(
            Path(record["file_name"]).name + (" (faulty)" if report.faults else ""),
            maps.image,
            maps.labels,
            maps.components.indices,
            number_names([options.class_names[label] for label in maps.components.classes]),
        )
        if options.thing_names and not report.faults:
            instances = read_instance_map(record, maps.image.shape[:2], options.thing_ids)
            # Visible instances get new numbers.
            present = np.unique(instances[instances >= 0])
            key = "annotations" if "annotations" in record else "segments_info"
            names = [options.thing_names[record[key][index]["category_id"]] for index in present]
            sample.instances = np.searchsorted(present, instances)
            sample.instances[instances < 0] = -1
            sample.instance_names = number_names(names)
        yield sample


def legend_of(options: CheckOptions, metadata: Any) -> dict[str, Any]:
    """Names and colours of the classes, as arguments of ``draw_contact_sheet``."""
    if options.truth == ("annotations",):  # the last class, the background, is not coloured
        names, key = options.thing_names, "thing_colors"
    else:
        names, key = options.class_names, "stuff_colors"
    return {"class_names": names, "class_colors": class_colors(metadata, len(names), key)}
