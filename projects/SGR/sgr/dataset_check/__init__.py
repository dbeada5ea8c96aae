"""Looking at a registered dataset before training on it; ``tools/check_dataset.py`` tells the rest.

A record in, its figures and faults out (:mod:`.record`); a dataset's are their sums
(:mod:`.dataset`). What a training would refuse is asked of its mapper (:mod:`.training`).
:mod:`.tables` and :mod:`.samples` are for people.
"""

from .counts import Counts
from .dataset import DatasetReport, check_records, spread
from .faults import FaultKind
from .options import CheckOptions, class_faults, options_for
from .record import RecordMaps, RecordReport, check_record, examine_record
from .samples import legend_of, samples_of
from .tables import tell
from .training import check_component_keys, training_faults, training_mapper

__all__ = [
    "CheckOptions",
    "Counts",
    "DatasetReport",
    "FaultKind",
    "RecordMaps",
    "RecordReport",
    "check_component_keys",
    "check_record",
    "check_records",
    "class_faults",
    "examine_record",
    "legend_of",
    "options_for",
    "samples_of",
    "spread",
    "tell",
    "training_faults",
    "training_mapper",
]
