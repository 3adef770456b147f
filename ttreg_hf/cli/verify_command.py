"""`ttreg verify`: does a patched checkpoint do what it was made for, on these images?"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.command import REFUSED
from ttreg_hf.cli.inputs import calibration_of, model_source, open_images, open_model, settings_of
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.cli.progress import progress_bars
from ttreg_hf.pictures.numbers import what_is_moved

if TYPE_CHECKING:
    from ttreg_hf.calibration.verification_run import CheckpointVerification

_NUM_IMAGES = 48


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Hub id or folder of a patched checkpoint.", show_default=False)
    ],
    image_options: options.ImageOptions,
    detection: options.DetectionOptions,
    model_options: options.ModelOptions,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Check a patched checkpoint again: outliers, drift and controls against its own base model. Writes nothing.

    A folder must also load without ttreg_hf and give the outputs that were recorded when it was made; its code is run
    if it is the installed one, else only with `--trust-remote-code`. Exit code 0 if
    the verdict is fixed, else 3. Threshold and block are those of its calibration, else chosen automatically. Looks at
    48 images by default.
    """
    from ttreg_hf.calibration.config import RunConfig
    from ttreg_hf.calibration.verdict import FIXED
    from ttreg_hf.calibration.verification_run import verify_patched
    from ttreg_hf.loading import check_is_there
    from ttreg_hf.publishing.output_check import check_outputs
    from ttreg_hf.publishing.published_files import EXPECTED_OUTPUTS

    printer = Printer(json)
    if not is_first_rank():
        return
    check_is_there(checkpoint)
    config = settings_of(detection, num_images=image_options.num_images or _NUM_IMAGES, seed=seed)
    folder = Path(checkpoint)
    token = model_options.token
    images = open_images(image_options, token=token, model=checkpoint, num_images=config.num_images, seed=seed)
    images.describe(printer, config.num_images)
    difference = None
    if (folder / EXPECTED_OUTPUTS).is_file():
        difference = check_outputs(folder, trust_remote_code=model_options.trust_remote_code)
        printer.say(f"loads without ttreg_hf and gives the recorded outputs (difference {difference:.1e})")
    checkpoint_source = model_source(checkpoint, model_options)
    loaded, processor = open_model(checkpoint_source)
    calibration = calibration_of(loaded, checkpoint_source)
    if calibration is not None and calibration.on_other_weights:
        printer.note(
            f"note: the calibration in {checkpoint} was not measured on these weights: its threshold is not used"
        )
    source = images.named.source
    with progress_bars(images.available) as progress:
        found = verify_patched(
            loaded,
            images.named,
            calibration=calibration,
            config=config,
            processor=processor,
            run=RunConfig(max_bad_share=image_options.max_bad_images),
            in_sample=calibration is not None and calibration.provenance.source.may_share_images_with(source),
            progress=progress,
            say=printer.note,
        )
    if places := loaded.config.fixed_positions:
        printer.say(f"moved: {what_is_moved(loaded.config.register_neurons, places, layers=True)}")
    _print(printer, found)
    printer.result(
        {
            "checkpoint": checkpoint,
            "images": str(source),
            "verdict": found.verdict,
            "output_difference": difference,
            **dataclasses.asdict(found),
        }
    )
    if found.verdict != FIXED:
        raise typer.Exit(REFUSED)


def _print(printer: Printer, found: "CheckpointVerification") -> None:
    from ttreg_hf.report.verification_tables import gate_table, notes_of, verification_tables

    printer.say(f"verdict: {found.headline}")
    for reason in found.reasons:
        printer.say(f"because: {reason}")
    if found.verification is None:
        printer.say("the base model has no outlier tokens on these images, so that nothing can be shown")
        return
    for table in verification_tables(
        found.verification, detection_layer=found.detection_layer, norm_threshold=found.norm_threshold
    ):
        printer.show_table(table)
    for note in notes_of(found.verification):
        printer.say(note)
    if found.constant_checks:
        printer.say(
            "The checkpoint is in constant mode. The tables above are of its neurons with a token; without one:"
        )
        printer.show_table(gate_table(found.constant_checks))
