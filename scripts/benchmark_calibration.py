#!/usr/bin/env python
"""How fast calibration is: `scripts/benchmark_calibration.py --help`."""

from benchmarks.calibration_speed import main

main()
