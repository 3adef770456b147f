"""Finding register neurons: pure functions over tensors, one file that records, one that drives."""
