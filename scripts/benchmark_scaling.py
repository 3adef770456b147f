#!/usr/bin/env python
"""How a long calibration scales over processes: `scripts/benchmark_scaling.py --help`."""

from ttreg_hf.benchmarks.scaling import main

main()
