"""Faster forms of what the suitcase does in plain PyTorch: installed only, opt-in, with equal results."""

from ttreg_hf.kernels.choice import use_triton

__all__ = ["use_triton"]
