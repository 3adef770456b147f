#!/usr/bin/env python
"""Tests and exchanged checkpoints under several releases of transformers: `scripts/test_versions.py --help`."""

from ttreg_hf.benchmarks.versions import main

main()
