#!/usr/bin/env python
"""Whether an installed ttreg_hf works, in an environment that has no checkout: `nox -s release` runs it.

`scripts/smoke_test.py QUICKSTART` takes the folder that `ttreg quickstart --output QUICKSTART` left there.
"""

import importlib.metadata
import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

import ttreg_hf
from ttreg_hf.images.photographs import load_photographs


def main(folder: Path) -> None:
    """Load the checkpoint as a user does, and see that the registers do something and can be switched off."""
    if Path(ttreg_hf.__file__).is_relative_to(Path(__file__).parents[1]):
        sys.exit(f"This tests an installed package, got the checkout at {ttreg_hf.__file__}.")
    if ttreg_hf.__version__ != importlib.metadata.version("ttreg_hf"):
        sys.exit(f"ttreg_hf says {ttreg_hf.__version__}, its metadata {importlib.metadata.version('ttreg_hf')}.")
    model = AutoModel.from_pretrained(folder / "checkpoint").eval()
    inputs = AutoImageProcessor.from_pretrained(folder / "checkpoint")(load_photographs()[0], return_tensors="pt")
    with torch.no_grad():
        patched = model(**inputs).last_hidden_state
        with model.disable_test_time_registers():
            base = model(**inputs).last_hidden_state
    if patched.shape != base.shape or torch.equal(patched, base):
        sys.exit("The registers of the loaded checkpoint must change its features, and not their shape.")
    print(f"ttreg_hf {ttreg_hf.__version__}: {type(model).__name__} works")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
