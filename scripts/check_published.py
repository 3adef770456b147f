#!/usr/bin/env python
"""Compares a known checkpoint with its published figures. Not run on real weights yet; see `--help`."""

from benchmarks.reproduction import main

raise SystemExit(main())
