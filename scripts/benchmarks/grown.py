"""Grows artifacts in a real model, variant by variant, and shows what a calibration makes of each.

Run it through `scripts/grown_artifacts.py`. What is done is kept in the output folder: a run goes on where it ended.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel

from benchmarks.growing import grow
from benchmarks.grown_job import Job
from benchmarks.grown_judging import RESULT_FILE, Judgement, calibrated, models_of, outliers_an_image, rows_of
from benchmarks.grown_photographs import crops_to_calibrate, crops_to_report, squares_to_grow
from benchmarks.grown_steps import run_steps, write_tables
from benchmarks.grown_table import table
from benchmarks.grown_variants import CHECKPOINT, VARIANTS
from benchmarks.options import Device, one_of, place_of
from benchmarks.photographs import SPLITS
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.verdict import CLEAN
from ttreg_hf.loading import load_processor
from ttreg_hf.writing import whole_directory, write_file

TABLE_FILE = "grown.md"
CALIBRATION = "calibration"


def run_job(job: Job) -> None:
    """What is left to do of it: grow, calibrate and hold against the model before growing, measure the rest."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    job.output.mkdir(parents=True, exist_ok=True)
    original = job.load(job.base).requires_grad_(False)
    seconds = {"growing": _timed(_grow, job, original)} if not (job.output / CHECKPOINT).exists() else {}
    grown = job.load(job.output / CHECKPOINT)
    if not (job.output / RESULT_FILE).exists():
        write_file(job.output / RESULT_FILE, _judged(job, original, grown, seconds).to_json().encode())
    run_steps(job, original, grown, CalibrationResult.load(job.output / CALIBRATION))


def _grow(job: Job, original: PreTrainedModel) -> None:
    squares = squares_to_grow(job.photographs, job.variant.image_size).to(original.device)
    grown = grow(original, squares, job.variant, steps=job.steps, seed=job.seed, say=job.say)
    with whole_directory(job.output / CHECKPOINT) as folder:
        grown.save_pretrained(folder)
        load_processor(str(job.base)).save_pretrained(folder)


def _judged(job: Job, original: PreTrainedModel, grown: PreTrainedModel, seconds: dict[str, float]) -> Judgement:
    size = job.variant.image_size
    crops = crops_to_calibrate(job.photographs, size, job.num_images, seed=job.seed)
    result, took = calibrated(grown, crops, job.output / CALIBRATION, seed=job.seed)
    job.say(f"{result.verdict}, {len(result.register_neurons)} neurons")
    report = crops_to_report(job.photographs, size)
    models, left_out = models_of(grown, result)
    layers = [neuron.layer for neuron in result.register_neurons]
    is_clean = result.verdict == CLEAN
    return Judgement(
        variant=job.name,
        seed=job.seed,
        expected=job.variant.expected,
        verdict=result.verdict,
        reasons=result.reasons,
        layers={str(layer): layers.count(layer) for layer in sorted(set(layers))},
        norm_threshold=result.config.norm_threshold,
        detection_layer=result.config.detection_layer,
        outliers_an_image=0.0 if is_clean else outliers_an_image(grown, result, report),
        rows=() if is_clean else rows_of(original, models, result, report),
        left_out=left_out,
        seconds={**seconds, "calibrating": took},
    )


def _timed(function: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _run_all(jobs: Sequence[Job], processes: int) -> bool:
    """Whether every job came to its end; one that fails is named, and the others go on."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(running):
            if error := future.exception():
                running[future].say(f"failed: {type(error).__name__}: {error}")
        return not any(future.exception() for future in running)


def grown_artifacts(
    base: Annotated[Path, typer.Option(help="Folder of a DINOv2: `scripts/real_checkpoint.py` makes one.")],
    photographs: Annotated[
        Path, typer.Option(help=f"Folder with {', '.join(SPLITS)}: `scripts/real_photographs.py`.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of all results; a run goes on where they end.")],
    composites: Annotated[
        Path | None, typer.Option(help="From `scripts/build_composites.py`: dense tasks too.")
    ] = None,
    variant: Annotated[
        list[str], typer.Option(callback=one_of(*VARIANTS), help=f"{', '.join(VARIANTS)}; may be given again.")
    ] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="May be given again.")] = [0],  # noqa: B006
    steps: Annotated[int, typer.Option(min=2, help="Of the optimiser.")] = 1400,
    num_images: Annotated[int, typer.Option(min=16, help="To calibrate on.")] = 300,
    processes: Annotated[int, typer.Option("--processes", "-j", min=1, help="Models at a time.")] = 1,
    device: Device = None,
) -> None:
    """Grow artifacts in a real model, calibrate, and compare with the model before growing."""
    place, names = str(place_of(device)), variant or list(VARIANTS)
    jobs = [
        Job(base, photographs, composites, output / f"{name}-{each}", name, each, steps, num_images, place)
        for each in seed
        for name in names
    ]
    all_done = _run_all(jobs, processes)
    done = [job.output / RESULT_FILE for job in jobs if (job.output / RESULT_FILE).exists()]
    text = table([json.loads(path.read_text(encoding="utf-8")) for path in done])
    write_file(output / TABLE_FILE, text.encode())
    print(text)
    write_tables(jobs, output)
    if not all_done:
        raise typer.Exit(1)


def main() -> None:
    """The command line of `scripts/grown_artifacts.py`."""
    typer.run(grown_artifacts)
