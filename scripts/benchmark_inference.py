#!/usr/bin/env python
"""What a patched model costs beside its base model: `scripts/benchmark_inference.py --help`."""

from benchmarks.inference_speed import main

main()
