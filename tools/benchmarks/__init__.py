"""The sub-commands of tools/benchmark.py, one file each.

A file has a literal version, which is the paper's formulas as one would write them first, and the
measurement of it beside the package's version. So the literal versions are the readable paper. They
are not written to be slow. They are no oracles either: the tests have their own.

Each module has ``COMPARES``, a line that says what is compared. ``add_options(option)`` gets an
``add_argument`` for positive integers. ``run(args)`` yields rows, and raises a ValueError for sizes
that make no sense.
"""
