"""What the processes of a launch do: `torchrun -m evaluation.launched FOLDER`. Started by `test_evaluation_run.py`."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from ttreg_hf.loading import load_model

from .test_evaluation_run import measure

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    found = measure(load_model(str(folder / "model"), device="cpu"), accelerator)
    if accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps({"processes": accelerator.num_processes, **found}))
    accelerator.end_training()
