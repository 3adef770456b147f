#!/usr/bin/env python
"""How long `ttreg calibrate` takes, with process start and report: `scripts/benchmark_verdict.py --help`."""

from benchmarks.time_to_verdict import main

main()
