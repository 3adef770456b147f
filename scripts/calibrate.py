#!/usr/bin/env python
"""`ttreg calibrate`, for launchers that want a file: `accelerate launch scripts/calibrate.py MODEL --output DIR`."""

import sys

from ttreg_hf.cli import main

sys.exit(main(["calibrate", *sys.argv[1:]]))
