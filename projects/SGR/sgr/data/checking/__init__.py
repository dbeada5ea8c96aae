"""Looking at a registered dataset before training on it; ``tools/check_dataset.py`` tells the rest.

A record in, its figures and faults out (:mod:`.record`); a dataset's are their sums
(:mod:`.dataset`). Files without a partner (:mod:`.folders`), and classes that the config does not
expect (:mod:`.options`), are a matter of the dataset as a whole. :mod:`.tables` is for people.
"""

from .dataset import DatasetReport, check_records, spread
from .faults import Fault, FaultKind
from .folders import Unpaired, find_unpaired
from .options import CheckOptions, class_faults, options_for
from .record import RecordMaps, RecordReport, check_record, examine_record
from .tables import tell

__all__ = [
    "CheckOptions",
    "DatasetReport",
    "Fault",
    "FaultKind",
    "RecordMaps",
    "RecordReport",
    "Unpaired",
    "check_record",
    "check_records",
    "class_faults",
    "examine_record",
    "find_unpaired",
    "options_for",
    "spread",
    "tell",
]
