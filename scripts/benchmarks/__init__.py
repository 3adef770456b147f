"""Benchmarks: interleaved runs, medians, ratios. Their scripts are in `scripts/`."""
