#!/usr/bin/env python
"""How fast calibration is: `scripts/benchmark_calibration.py --help`."""

from ttreg_hf.benchmarks.calibration import main

main()
