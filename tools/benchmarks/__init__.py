"""The sub-commands of tools/benchmark.py, one file each.

A file holds a literal version, the paper's formulas as one would first write them, and what is
measured of it and of the package's. The literal versions are not written to be slow, and they are
no oracles either: the tests have their own.

Each module has ``COMPARES``, a line that says what is compared; ``add_options(option)``, which
takes ``add_argument`` for positive integers; and ``run(args)``, which yields rows and raises
ValueError for sizes that make no sense.
"""
