"""`ttreg apply`: a checkpoint with test-time registers."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.command import refuse
from ttreg_hf.cli.inputs import model_source, read_calibration
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.pictures.numbers import what_is_moved


class Mode(str, Enum):
    """How the attentions come by a register."""

    token = "token"
    constant = "constant"


def apply(
    model: options.Model,
    output: options.Output,
    model_options: options.ModelOptions,
    calibration: options.Calibration = None,
    force: Annotated[
        bool, typer.Option("--force", help="Patch whatever the verdict is, and whatever weights it is of.")
    ] = False,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="token: one empty token more; constant: no token, but one more row, the same for every image, in the "
            "attentions of the last blocks. constant needs --calibration.",
        ),
    ] = Mode.token,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a complete checkpoint folder: same weights, a test-time register, and the neurons moved to it.

    The neurons are those of `--calibration`, else the published ones.
    """
    from ttreg_hf.publishing.checkpoint import VerdictError, make_checkpoint
    from ttreg_hf.publishing.published_files import checkpoint_files

    printer = Printer(json)
    if not is_first_rank():
        return
    result, neuron_source = None, "published, not verified by this project"
    if calibration is not None:
        result = read_calibration(calibration)
        neuron_source = f"{calibration}, verdict {result.headline}"
    try:
        source = model_source(model, model_options)
        patched = make_checkpoint(
            source, output, calibration=result, mode=mode.value, force=force, overwrite=overwrite
        )
    except VerdictError as error:
        refuse(f"not patched: {error}")

    if result is not None and read_calibration(output).on_other_weights:
        neuron_source = f"{calibration}, not measured on these weights"
    files = [str(file) for file in checkpoint_files(output).values()]
    count, places = len(patched.config.register_neurons), patched.config.fixed_positions
    printer.say(f"{what_is_moved(patched.config.register_neurons, places)} of {model} ({neuron_source})")
    for file in files:
        printer.say(f"wrote {file}")
    printer.say("To load it:")
    for line in loading_lines(output, reads_text="text" in patched.input_modalities):
        printer.say(f"    {line}")
    printer.result(
        {
            "model": model,
            "output": str(output),
            "files": files,
            "register_neurons": count,
            "fixed_positions": places,
            "mode": mode.value,
        }
    )


def loading_lines(checkpoint: Path, *, reads_text: bool) -> list[str]:
    """Python that loads and runs a checkpoint where ttreg_hf is not installed."""
    processor = "AutoProcessor" if reads_text else "AutoImageProcessor"
    texts = 'text=["a cat", "a dog"], padding=True, ' if reads_text else ""
    output = (
        "scores = model(**inputs).logits_per_image" if reads_text else "features = model(**inputs).last_hidden_state"
    )
    return [
        "from PIL import Image",
        f"from transformers import {processor}, AutoModel",
        f"processor = {processor}.from_pretrained({str(checkpoint)!r})",
        f"model = AutoModel.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)",
        f'inputs = processor({texts}images=Image.open("my.jpg").convert("RGB"), return_tensors="pt")',
        output,
    ]
