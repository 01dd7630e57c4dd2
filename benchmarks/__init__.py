"""Measurements against peers and limits, run as `python -m benchmarks.NAME`."""

import arion  # noqa: F401  (sets what torch reads once, as the command line does, for peers too)
