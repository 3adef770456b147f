#!/usr/bin/env python
"""Makes a real checkpoint without the Hub: `scripts/real_checkpoint.py --help`."""

from benchmarks.real_checkpoint import main

main()
