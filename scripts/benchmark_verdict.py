#!/usr/bin/env python
"""How long `ttreg calibrate` takes, with process start and report: `scripts/benchmark_verdict.py --help`."""

from ttreg_hf.benchmarks.verdict import main

main()
