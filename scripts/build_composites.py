#!/usr/bin/env python
"""Builds an offline data set with exact masks, boxes and labels: `scripts/build_composites.py --help`."""

from benchmarks.composites import main

main()
