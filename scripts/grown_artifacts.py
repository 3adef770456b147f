#!/usr/bin/env python
"""Grows artifacts in a real model and calibrates it: `scripts/grown_artifacts.py --help`."""

from benchmarks.grown import main

if __name__ == "__main__":  # its processes import this file
    main()
