"""Checks of a registered dataset before a training, for ``tools/check_dataset.py``.

:mod:`.record` checks one record and makes a :class:`Report`; the report of a dataset is their sum
(:mod:`.report`). :mod:`.training` asks the mapper of a config what it would refuse. :mod:`.tables`
and :mod:`.samples` show the results.
"""

from .options import CheckOptions, class_faults, options_for
from .record import RecordMaps, check_record, check_records, examine_record
from .report import Report, spread
from .samples import legend_of, samples_of
from .tables import tell
from .training import training_faults, training_mapper
