"""The folder of a calibration: result, neuron switch, report and its figures."""

import dataclasses
import io
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig, RunConfig
from ttreg_hf.calibration.run_state import remove_states
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.progress import Progress, Say, say_nothing, silent
from ttreg_hf.loading import model_and_processor
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.report.charts import figures_of
from ttreg_hf.report.neuron_switch import NeuronSwitch, record_switch
from ttreg_hf.report.page import render_page
from ttreg_hf.report.photographs_to_show import photographs_to_show
from ttreg_hf.report.switch_file import load_switch, save_switch
from ttreg_hf.writing import check_output, whole_directory, write_into

REPORT_FILE, FIGURES = "report.html", "figures"


def calibrate_to_folder(
    model_or_id: PreTrainedModel | str | Path,
    images: Any,
    directory: str | Path,
    *,
    overwrite: bool = False,
    config: CalibrationConfig | None = None,
    processor: Any = None,
    accelerator: Any = None,
    gate: GateConfig | None = None,
    run: RunConfig | None = None,
    revision: str | None = None,
    note: str = "",
    progress: Progress = silent,
    say: Say = say_nothing,
) -> CalibrationResult:
    """Calibrate, and write what `ttreg calibrate` leaves: the result's two files, and a report with photographs.

    Args:
        model_or_id: as in `calibrate`, as all that is not named here.
        images: as in `calibrate`.
        directory: appears whole or not at all; written by the first process. A long run saves its states beside it.
        overwrite: replace what is there.
        config: as in `calibrate`.
        processor: likewise.
        accelerator: likewise.
        gate: likewise.
        run: likewise.
        revision: likewise.
        note: about the model, for those who look at the report.
        progress: as in `calibrate`.
        say: likewise.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: as `calibrate`.
    """
    directory, named = Path(directory), NamedImages.of(images)
    check_output(directory, overwrite=overwrite)
    config, run = config or CalibrationConfig(), run or RunConfig()
    if run.state_directory is None:
        run = dataclasses.replace(run, state_directory=directory.with_name(f"{directory.name}.state"))
    is_first = accelerator is None or accelerator.is_main_process
    with whole_directory(directory, overwrite=overwrite) if is_first else nullcontext() as folder:
        device = accelerator.device if accelerator else None
        model, processor = model_and_processor(model_or_id, processor, revision=revision, device=device)
        with _naming_states(run.state_directory):
            result = calibrate(
                model,
                named,
                config=config,
                processor=processor,
                accelerator=accelerator,
                gate=gate,
                run=dataclasses.replace(run, keep_states=True),
                revision=revision,
                progress=progress,
                say=say,
            )
            if folder is not None:
                result.save(folder)
                switch = record_calibrated_switch(
                    model, _all_images(named, processor, config, run, model), result, note
                )
                save_switch(switch, folder)
                write_report(folder, result)
    if is_first and run.state_directory is not None and not run.keep_states:
        remove_states(run.state_directory)  # only now: the result is where it belongs
    return result


@contextmanager
def _naming_states(directory: Path | None) -> Generator[None]:
    """Tells whoever interrupts a run from where it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if directory is None or not any(directory.glob("place-*")):
            raise
        raise KeyboardInterrupt(
            f"interrupted. What was done is kept in {directory}: the same command with `--resume` (`resume=True`) "
            "goes on from there."
        ) from None


def record_calibrated_switch(
    model: PreTrainedModel, batches: ImageBatches, result: CalibrationResult, note: str
) -> NeuronSwitch:
    """The neuron switch of the base model that was calibrated."""
    return record_switch(
        model,
        add_test_time_registers(
            model,
            result.register_neurons,
            shift_value=result.shift_value,
            fixed_positions=result.fixed_positions,
        ),
        photographs_to_show(model, batches, result),
        batches.processor,
        detection_layer=result.norms.detection_layer,
        seed=result.config.seed,
        note=note,
        constants=result.constants,
    )


def _all_images(
    named: NamedImages, processor: Any, config: CalibrationConfig, run: RunConfig, model: Any
) -> ImageBatches:
    return ImageBatches(
        open_images(named.images, image_column=named.image_column),
        processor,
        num_images=config.num_images,
        batch_size=1,
        device=model.device,
        max_bad_share=run.max_bad_share,
        channels=VisionTower.of(model).num_channels,
    )


def write_report(directory: str | Path, result: CalibrationResult | None = None) -> list[Path]:
    """Write `report.html` and its figures into a calibration folder; each file is replaced as a whole.

    It shows photographs and local paths, so it is for you: checkpoints are published without it.

    Args:
        directory: with `calibration.json` and `calibration.safetensors`; without `switch.safetensors` the page has no
            photographs.
        result: what these files hold, if it is known already.

    Returns:
        The files that were written, the page first.

    Raises:
        FileNotFoundError: no calibration is there.
        ValueError: a file of another format or version, or a checkpoint, which is published as it is.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        raise ValueError(
            f"A report belongs into the folder of a calibration, but {directory} is a checkpoint, which is published "
            "as it is. Give the folder that `ttreg calibrate` wrote."
        )
    result = result or CalibrationResult.load(directory)
    switch = load_switch(directory)
    pictures: dict[str, bytes] = {}
    for name, figure in figures_of(result):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pictures[name] = buffer.getvalue()
    page = render_page(result, switch, pictures)
    (directory / FIGURES).mkdir(exist_ok=True)
    written = [write_into(directory, REPORT_FILE, page.encode("utf-8"))]
    written += [write_into(directory, f"{FIGURES}/{name}.png", png) for name, png in pictures.items()]
    return written
