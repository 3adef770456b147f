"""`ttreg apply`: a checkpoint with test-time registers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.opening import open_model, read_calibration
from ttreg_hf.cli.printing import Printer, is_first_rank
from ttreg_hf.cli.verbs import refuse

_PICTURED = ("cat", "coffee", "rocket")  # of the bundled photographs


def apply(
    model: options.Model,
    output: options.Output,
    calibration: options.Calibration = None,
    force: Annotated[bool, typer.Option("--force", help="Patch whatever the verdict is.")] = False,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    device: options.Device = None,
    dtype: options.DtypeOption = None,
    json: options.Json = False,
) -> None:
    """Write a complete checkpoint folder: same weights, a test-time register, and the neurons moved to it.

    The neurons are those of `--calibration`, else the published ones.
    """
    from ttreg_hf.applying import add_test_time_registers, published_register_neurons
    from ttreg_hf.calibration.verification import FIXED
    from ttreg_hf.checkpoint import save_checkpoint
    from ttreg_hf.families import family_of
    from ttreg_hf.from_hub import commit_of
    from ttreg_hf.loading import load_whole_processor
    from ttreg_hf.photographs import photograph_paths
    from ttreg_hf.visualizing import write_before_after
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    check_output(output, overwrite=overwrite)
    if calibration is None:
        result = None
        published_register_neurons(model)  # an error before the model is loaded, if there are none
        source = "published, not verified by this project"
    else:
        result = read_calibration(calibration)
        source = f"{calibration}, verdict {result.verdict}"
        if result.verdict != FIXED and not force:
            refuse(f"not patched: the verdict of {calibration} is {result.verdict}. `--force` patches all the same.")
        if result.provenance.model != model:
            printer.note(f"note: {calibration} was made for {result.provenance.model}, not for {model}")

    loaded, processor = open_model(
        model, revision=revision, trust_remote_code=trust_remote_code, token=token, device=device, dtype=dtype
    )
    commit = commit_of(model, revision=revision, token=token) or revision
    patched = add_test_time_registers(
        loaded,
        None if result is None else result.register_neurons,
        shift_value=None if result is None else result.shift_value,
        base_model_revision=commit,
        calibrated_image_size=None if result is None else result.provenance.image_size,
    )
    if not is_first_rank():
        return
    with TemporaryDirectory() as scratch:
        pictures = []
        if processor is not None:
            pictures = write_before_after(
                loaded,
                patched,
                [path for path in photograph_paths() if path.stem in _PICTURED],
                processor,
                scratch,
                detection_layer=family_of(loaded).detection_layer if result is None else result.norms.detection_layer,
                norm_threshold=None if result is None else result.norms.norm_threshold,
                caption=f"{model.rstrip('/').split('/')[-1]}, before and after",
            )
        whole = load_whole_processor(
            loaded, model, revision=revision, token=token, trust_remote_code=trust_remote_code
        )
        save_checkpoint(patched, output, processor=whole, calibration=result, pictures=pictures, overwrite=overwrite)

    files = [str(output / file.name) for file in sorted(output.iterdir())]
    count = len(patched.config.register_neurons)
    printer.say(f"{count} register neuron{'s' if count != 1 else ''} of {model} ({source})")
    for file in files:
        printer.say(f"wrote {file}")
    printer.say("To load it:")
    for line in loading_lines(output, reads_text="text" in loaded.input_modalities):
        printer.say(f"    {line}")
    printer.result({"model": model, "output": str(output), "files": files, "register_neurons": count})


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
