"""`ttreg list`: checkpoints that come with settings or published neurons."""

import dataclasses

from ttreg_hf.cli import options
from ttreg_hf.cli.printer import Printer, new_table
from ttreg_hf.known.checkpoints import known_checkpoints
from ttreg_hf.known.known_checkpoint import Recipe


def list_checkpoints(json: options.Json = False) -> None:
    """Known checkpoints: their family, recipe and published register neurons."""
    printer = Printer(json)
    text = ("checkpoint", "family", "recipe", "status")
    table = new_table("checkpoint", "family", "neurons", "recipe", "status", left=text)
    for name, known in known_checkpoints().items():
        count = str(len(known.register_neurons)) if known.register_neurons else "-"
        table.add_row(name, known.family, count, _in_short(known.recipe), known.status)
    printer.show(table)
    printer.say("With neurons: ttreg apply MODEL --output CHECKPOINT. Without: ttreg calibrate MODEL --recipe.")
    printer.result({"checkpoints": [dataclasses.asdict(known) for known in known_checkpoints().values()]})


def _in_short(recipe: Recipe) -> str:
    parts = []
    if recipe.norm_threshold is not None:
        parts.append(f"norm > {recipe.norm_threshold:g}")
    if recipe.detection_layer is not None:
        parts.append(f"at block {recipe.detection_layer}")
    if recipe.last_layer is not None:
        parts.append(f"layers {recipe.first_layer or 0}-{recipe.last_layer}")
    if recipe.top_k is not None:
        parts.append(f"top {recipe.top_k}")
    return ", ".join(parts) or "automatic"
