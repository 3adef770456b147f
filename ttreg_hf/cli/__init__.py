"""The command line: parsing and printing only. Heavy packages are imported inside the verbs: `--help` is quick."""

from ttreg_hf.cli.app import main

__all__ = ["main"]
