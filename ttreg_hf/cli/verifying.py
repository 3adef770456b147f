"""`ttreg verify`: does a patched checkpoint do what it was made for, on these images?"""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.opening import open_images, open_model, read_calibration, settings_of
from ttreg_hf.cli.printing import Printer, is_first_rank, progress_bars
from ttreg_hf.cli.verbs import REFUSED
from ttreg_hf.cli.verdict_tables import gate_table, verification_table

_NUM_IMAGES = 48


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Hub id or folder of a patched checkpoint.", show_default=False)
    ],
    dataset: options.Dataset = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    num_images: options.NumImages = _NUM_IMAGES,
    batch_size: options.BatchSize = None,
    norm_threshold: options.NormThreshold = None,
    detection_layer: options.DetectionLayer = None,
    seed: options.Seed = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    device: options.Device = None,
    dtype: options.DtypeOption = None,
    json: options.Json = False,
) -> None:
    """Check a patched checkpoint again: outliers, drift and controls against its own base model. Writes nothing.

    A folder must also load without ttreg_hf and give the outputs that were recorded when it was made. Exit code 0 if
    the verdict is fixed, else 3. Threshold and block are those of its calibration, else chosen automatically.
    """
    from ttreg_hf.calibration.rechecking import recheck
    from ttreg_hf.calibration.result import JSON_FILE
    from ttreg_hf.calibration.verification import FIXED
    from ttreg_hf.verifying import EXPECTED_OUTPUTS, verify_checkpoint

    printer = Printer(json)
    if not is_first_rank():
        return
    config = settings_of(
        {
            "num_images": num_images,
            "batch_size": batch_size,
            "norm_threshold": norm_threshold,
            "detection_layer": detection_layer,
            "seed": seed,
        }
    )
    folder = Path(checkpoint)
    calibration = read_calibration(folder) if (folder / JSON_FILE).is_file() else None
    images = open_images(
        dataset, split=split, image_column=image_column, token=token, model=checkpoint, num_images=config.num_images,
        seed=seed,
    )  # fmt: skip
    images.tell(printer, config.num_images)
    difference = None
    if (folder / EXPECTED_OUTPUTS).is_file():
        difference = verify_checkpoint(folder)
        printer.say(f"loads without ttreg_hf and gives the recorded outputs (difference {difference:.1e})")
    loaded, processor = open_model(
        checkpoint, revision=revision, trust_remote_code=trust_remote_code, token=token, device=device, dtype=dtype
    )
    with progress_bars(images.available) as progress:
        found = recheck(
            loaded,
            images.images,
            calibration=calibration,
            config=config,
            processor=processor,
            image_column=images.image_column,
            in_sample=calibration is not None and calibration.provenance.images == images.name,
            progress=progress,
            say=printer.note,
        )
    printer.say(f"verdict: {found.verdict}")
    if found.verification is None:
        printer.say("the base model has no outlier tokens on these images, so that nothing can be shown")
    else:
        for check in found.verification.checks:
            if not check.passed:
                printer.say(f"because: {check.name} is {check.value:.3g}, allowed is {check.bound:.3g}")
        printer.show(
            verification_table(
                found.verification, detection_layer=found.detection_layer, norm_threshold=found.norm_threshold
            )
        )
        printer.show(gate_table(found.verification))
        if found.verification.in_sample:
            printer.say("in-sample: its neurons were found on these images")
    printer.result(
        {
            "checkpoint": checkpoint,
            "images": images.name,
            "verdict": found.verdict,
            "output_difference": difference,
            **dataclasses.asdict(found),
        }
    )
    if found.verdict != FIXED:
        raise typer.Exit(REFUSED)
