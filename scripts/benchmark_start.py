#!/usr/bin/env python
"""How quickly the command line answers, in fresh processes: `scripts/benchmark_start.py --help`."""

from benchmarks.start import main

main()
