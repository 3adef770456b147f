"""`python -m ttreg_hf` is `ttreg`."""

import sys

from ttreg_hf.cli import main

if __name__ == "__main__":  # not in the children that a data loader or a launcher may spawn
    sys.exit(main())
