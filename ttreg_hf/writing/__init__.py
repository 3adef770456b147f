"""Files and folders that appear whole or not at all, and destroy nothing that this package did not make."""

from ttreg_hf.writing.claims import scratch_directory
from ttreg_hf.writing.disk import check_space, explaining_full_disk
from ttreg_hf.writing.files import write_file
from ttreg_hf.writing.folders import check_output, check_writable, whole_directory
from ttreg_hf.writing.made_files import foreign_files, write_into

__all__ = [
    "check_output",
    "check_space",
    "check_writable",
    "explaining_full_disk",
    "foreign_files",
    "scratch_directory",
    "whole_directory",
    "write_file",
    "write_into",
]
