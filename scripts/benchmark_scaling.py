#!/usr/bin/env python
"""How a long calibration scales over processes: `scripts/benchmark_scaling.py --help`."""

from benchmarks.scaling import main

main()
