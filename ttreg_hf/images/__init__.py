"""Where images come from, for calibration and evaluation alike: sources, decoding, batches, processes."""
