#!/usr/bin/env python
"""Whether calibration gets models right whose truth is known: `scripts/confusion_table.py --help`."""

from benchmarks.confusion import main

if __name__ == "__main__":  # its processes import this file
    main()
