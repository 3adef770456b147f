#!/usr/bin/env python
"""Fetches 80 photographs, split by source, with their licences: `scripts/real_photographs.py --help`."""

from benchmarks.photographs import main

main()
