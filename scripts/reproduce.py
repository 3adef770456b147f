#!/usr/bin/env python
"""Compares a known checkpoint with its published figures. Not run on real weights yet; see `--help`."""

from ttreg_hf.reproduction import main

raise SystemExit(main())
