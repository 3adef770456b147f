#!/usr/bin/env python
"""What importing ttreg_hf and loading a patched model cost: `scripts/benchmark_loading.py --help`."""

from benchmarks.loading_speed import main

main()
