#!/usr/bin/env python
"""What a patched model costs beside its base model: `scripts/benchmark_inference.py --help`."""

from ttreg_hf.benchmarks.inference import main

main()
