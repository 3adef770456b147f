"""`ttreg calibrate`: find the register neurons."""

from typing import TYPE_CHECKING

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import model_source, open_images, open_model, settings_of
from ttreg_hf.cli.printer import Printer, is_first_rank, new_table
from ttreg_hf.cli.progress import progress_bars

if TYPE_CHECKING:
    from rich.table import Table

    from ttreg_hf.calibration.calibration_result import CalibrationResult

_STRONGEST = 6  # neurons of a layer that are printed
_NAMED = 5  # unreadable images that are named


def calibrate(
    model: options.Model,
    output: options.Output,
    image_options: options.ImageOptions,
    detection: options.DetectionOptions,
    search: options.SearchOptions,
    run_options: options.RunOptions,
    model_options: options.ModelOptions,
    recipe: options.Recipe = False,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Find the register neurons from images, and check that moving them works.

    On many GPUs: `accelerate launch -m ttreg_hf calibrate MODEL --output DIR`.
    """
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    config = settings_of(
        detection,
        search,
        num_images=image_options.num_images,
        seed=seed,
        recipe_of=model if recipe else None,
    )
    check_output(output, overwrite=overwrite)
    token = model_options.token
    images = open_images(image_options, token=token, model=model, num_images=config.num_images, seed=seed)

    from ttreg_hf.calibration.config import RunConfig
    from ttreg_hf.images.processes import Processes
    from ttreg_hf.report.calibration_folder import calibrate_to_folder

    processes = Processes.launched(model_options.device)
    loaded, processor = open_model(model_source(model, model_options, device=processes.device))
    count = f"{processes.world} process{'es' * (processes.world > 1)}"
    images.describe(printer, config.num_images, where=f"{count}, {loaded.device}, ")
    with progress_bars(images.available) as progress:
        result = calibrate_to_folder(
            loaded,
            images.named,
            output,
            overwrite=overwrite,
            config=config,
            processor=processor,
            accelerator=processes.accelerator,
            run=RunConfig(
                workers=run_options.workers,
                max_bad_share=image_options.max_bad_images,
                state_directory=output.with_name(f"{output.name}.state"),
                save_every=run_options.save_every,
                resume=run_options.resume,
                early_stop=run_options.early_stop,
            ),
            revision=model_options.revision,
            progress=progress,
            say=printer.note,
        )
    processes.end()
    if not is_first_rank():
        return
    files = [str(file) for file in sorted(output.rglob("[!.]*")) if file.is_file()]
    _print(printer, result)
    for file in files:
        printer.say(f"wrote {file}")
    printer.say(_next_step(result, model, str(output)))
    printer.result({"model": model, "output": str(output), "files": files, **result.to_dict()})


def _print(printer: Printer, result: "CalibrationResult") -> None:
    from ttreg_hf.pictures.numbers import what_is_moved
    from ttreg_hf.report.constant_table import constant_table, constant_words
    from ttreg_hf.report.position_words import position_words
    from ttreg_hf.report.verification_tables import notes_of, verification_tables

    printer.say(f"verdict: {result.headline} ({result.meaning})")
    bad = result.provenance.bad_images
    if bad:
        images_are = "image" if len(bad) == 1 else "images"
        more = ", ..." if len(bad) > _NAMED else ""
        printer.say(f"skipped {len(bad)} unreadable {images_are}: {', '.join(bad[:_NAMED])}{more}")
    for reason in result.reasons:
        printer.say(f"because: {reason}")
    for line in position_words(result.norms.positions):
        printer.say(line)
    if result.fixed_positions:
        printer.say(f"moved: {what_is_moved(result.register_neurons, result.fixed_positions, layers=True)}")
    if result.convergence is not None:
        printer.say(
            f"scored {result.provenance.images_scored} images, {result.provenance.images_with_outliers} with "
            f"outliers; two halves of them agree on {result.convergence.overlap_of_halves[-1]:.0%} of the best "
            f"{result.convergence.top_k} neurons"
        )
    if result.register_neurons:
        printer.show(_neuron_table(result))
    if result.verification is not None:
        norms = result.norms
        for table in verification_tables(
            result.verification, detection_layer=norms.detection_layer, norm_threshold=norms.norm_threshold
        ):
            printer.show_table(table)
        for note in notes_of(result.verification):
            printer.say(note)
    if result.constant_mode is not None:
        printer.show_table(constant_table(result.constant_mode))
        for line in constant_words(result.constant_mode):
            printer.say(line)


def _neuron_table(result: "CalibrationResult") -> "Table":
    """One row a layer: how many, and the strongest."""
    table = new_table("layer", "neurons", "strongest first (neuron: score)", left=("strongest first (neuron: score)",))
    for layer in sorted({neuron.layer for neuron in result.register_neurons}, reverse=True):
        found = [neuron for neuron in result.register_neurons if neuron.layer == layer]
        shown = ", ".join(f"{neuron.neuron}: {neuron.score:.3g}" for neuron in found[:_STRONGEST])
        more = f", and {len(found) - _STRONGEST} more" if len(found) > _STRONGEST else ""
        table.add_row(str(layer), str(len(found)), shown + more)
    return table


def _next_step(result: "CalibrationResult", model: str, output: str) -> str:
    if result.verdict == "fixed":
        return f"Next: ttreg apply {model} --calibration {output} --output CHECKPOINT"
    if result.verdict == "clean":
        return f"Next: nothing. `ttreg inspect {model} --norm-threshold N` looks with another threshold."
    if result.headline != result.verdict:
        return f"Next: ttreg calibrate {model} --output {output} --overwrite --dataset FOLDER, with more photographs."
    return f"Next: look with ttreg visualize {model} IMAGE --calibration {output}, or try more images or `--recipe`."
