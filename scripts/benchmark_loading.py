#!/usr/bin/env python
"""What importing ttreg_hf and loading a patched model cost: `scripts/benchmark_loading.py --help`."""

from ttreg_hf.benchmarks.loading import main

main()
