"""`ttreg calibrate`: find the register neurons."""

from typing import TYPE_CHECKING

from rich.table import Table

from ttreg_hf.cli import options
from ttreg_hf.cli.opening import open_images, open_model, open_processes, settings_of
from ttreg_hf.cli.printing import Printer, is_first_rank, new_table, progress_bars
from ttreg_hf.cli.verdict_tables import gate_table, verification_table

if TYPE_CHECKING:
    from ttreg_hf.calibration.result import CalibrationResult

_STRONGEST = 6  # neurons of a layer that are printed
_NAMED = 5  # unreadable images that are named


def calibrate(
    model: options.Model,
    output: options.Output,
    recipe: options.Recipe = False,
    dataset: options.Dataset = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    num_images: options.NumImages = None,
    batch_size: options.BatchSize = None,
    norm_threshold: options.NormThreshold = None,
    detection_layer: options.DetectionLayer = None,
    first_layer: options.FirstLayer = None,
    last_layer: options.LastLayer = None,
    top_k: options.TopK = None,
    max_active_fraction: options.MaxActiveFraction = None,
    detect_on_prefix: options.DetectOnPrefix = False,
    rounds: options.Rounds = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    workers: options.Workers = None,
    max_bad_images: options.MaxBadImages = 0.01,
    save_every: options.SaveEvery = 10_000,
    resume: options.Resume = False,
    early_stop: options.EarlyStop = False,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    device: options.Device = None,
    dtype: options.DtypeOption = None,
    json: options.Json = False,
) -> None:
    """Find the register neurons from images, and check that moving them works.

    On many GPUs: `accelerate launch -m ttreg_hf calibrate MODEL --output DIR`.
    """
    from ttreg_hf.writing import check_output, whole_directory

    printer = Printer(json)
    config = settings_of(
        {
            "num_images": num_images,
            "batch_size": batch_size,
            "norm_threshold": norm_threshold,
            "detection_layer": detection_layer,
            "first_layer": first_layer,
            "last_layer": last_layer,
            "top_k": top_k,
            "max_active_fraction": max_active_fraction,
            "detect_on_prefix": detect_on_prefix or None,
            "rounds": rounds,
            "budget": budget,
            "seed": seed,
        },
        recipe_of=model if recipe else None,
    )
    check_output(output, overwrite=overwrite)
    images = open_images(
        dataset,
        split=split,
        image_column=image_column,
        token=token,
        model=model,
        num_images=config.num_images,
        seed=seed,
    )
    accelerator = open_processes(device)
    if accelerator is not None:
        device = str(accelerator.device)
    loaded, processor = open_model(
        model, revision=revision, trust_remote_code=trust_remote_code, token=token, device=device, dtype=dtype
    )
    processes = 1 if accelerator is None else accelerator.num_processes
    images.tell(printer, config.num_images, where=f"{processes} process{'es' * (processes > 1)}, {loaded.device}, ")

    from ttreg_hf.calibration import driver
    from ttreg_hf.calibration.batches import ImageBatches
    from ttreg_hf.calibration.config import RunConfig
    from ttreg_hf.calibration.images import open_images as open_sources
    from ttreg_hf.calibration.verification import MEANING
    from ttreg_hf.report.folder import write_report
    from ttreg_hf.report.switch import record_switch
    from ttreg_hf.report.switch_file import save_switch

    run = RunConfig(
        workers=workers,
        max_bad_share=max_bad_images,
        state_directory=output.with_name(f"{output.name}.state"),
        save_every=save_every,
        resume=resume,
        early_stop=early_stop,
    )
    with progress_bars(images.available) as progress:
        result = driver.calibrate(
            loaded,
            images.images,
            config=config,
            processor=processor,
            accelerator=accelerator,
            run=run,
            image_column=images.image_column,
            revision=revision,
            images_name=images.name,
            progress=progress,
            say=printer.note,
        )
    if accelerator is not None:
        accelerator.end_training()
    if not is_first_rank():
        return
    shown = ImageBatches(
        open_sources(images.images, image_column=images.image_column),
        processor,
        num_images=config.num_images,
        batch_size=1,
        device=loaded.device,
        max_bad_share=max_bad_images,
    )
    switch = record_switch(loaded, shown, result)
    with whole_directory(output, overwrite=overwrite) as folder:
        result.save(folder)
        save_switch(switch, folder)
        write_report(folder, result)
    files = [str(file) for file in sorted(output.rglob("*")) if file.is_file()]

    printer.say(f"verdict: {result.verdict} ({MEANING[result.verdict]})")
    bad = result.provenance.bad_images
    if bad:
        images_are = "image" if len(bad) == 1 else "images"
        more = ", ..." if len(bad) > _NAMED else ""
        printer.say(f"skipped {len(bad)} unreadable {images_are}: {', '.join(bad[:_NAMED])}{more}")
    for reason in result.reasons:
        printer.say(f"because: {reason}")
    if result.convergence is not None:
        printer.say(
            f"scored {result.provenance.images_scored} images, {result.provenance.images_with_outliers} with "
            f"outliers; two halves of them agree on {result.convergence.overlap_of_halves[-1]:.0%} of the best "
            f"{result.convergence.top_k} neurons"
        )
    if result.register_neurons:
        printer.show(_neuron_table(result))
    if result.verification is not None:
        printer.show(
            verification_table(
                result.verification,
                detection_layer=result.norms.detection_layer,
                norm_threshold=result.norms.norm_threshold,
            )
        )
        printer.show(gate_table(result.verification))
        if result.verification.in_sample:
            printer.say("in-sample: measured on images that were also used to find the neurons")
    for file in files:
        printer.say(f"wrote {file}")
    printer.say(_next_step(result.verdict, model, str(output)))
    printer.result({"model": model, "output": str(output), "files": files, **result.to_dict()})


def _neuron_table(result: "CalibrationResult") -> Table:
    """One row a layer: how many, and the strongest."""
    table = new_table("layer", "neurons", "strongest first (neuron: score)", left=("strongest first (neuron: score)",))
    for layer in sorted({neuron.layer for neuron in result.register_neurons}, reverse=True):
        found = [neuron for neuron in result.register_neurons if neuron.layer == layer]
        shown = ", ".join(f"{neuron.neuron}: {neuron.score:.3g}" for neuron in found[:_STRONGEST])
        more = f", and {len(found) - _STRONGEST} more" if len(found) > _STRONGEST else ""
        table.add_row(str(layer), str(len(found)), shown + more)
    return table


def _next_step(verdict: str, model: str, output: str) -> str:
    if verdict == "fixed":
        return f"Next: ttreg apply {model} --calibration {output} --output CHECKPOINT"
    if verdict == "clean":
        return f"Next: nothing. `ttreg inspect {model} --norm-threshold N` looks with another threshold."
    return f"Next: look with ttreg visualize {model} IMAGE --calibration {output}, or try more images or `--recipe`."
