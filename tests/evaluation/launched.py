"""What the processes of a launch do: `torchrun -m evaluation.launched FOLDER`. Started by `test_evaluation_run.py`."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from ttreg_hf import evaluate
from ttreg_hf.loading import load_model

from .scenes import scenes
from .test_evaluation_run import CONFIG, QUICK, measure

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    model = load_model(str(folder / "model"), device="cpu")
    try:  # each process another order
        evaluate(
            model, scenes(6)[:: 1 - 2 * accelerator.process_index], task=QUICK, config=CONFIG, accelerator=accelerator
        )
        refused = ""
    except ValueError as error:
        refused = str(error)
    found = measure(model, accelerator)
    if accelerator.is_main_process:
        told = {"processes": accelerator.num_processes, "refused": refused, **found}
        (folder / "found.json").write_text(json.dumps(told))
    accelerator.end_training()
