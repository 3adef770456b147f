#!/usr/bin/env python
"""How quickly the demo's page answers, and a picture of it, in Chromium: `scripts/benchmark_demo.py --help`."""

from benchmarks.demo_in_browser import main

main()
