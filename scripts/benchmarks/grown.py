"""Grows artifacts in a real model, variant by variant, and shows what a calibration makes of each.

Run it through `scripts/grown_artifacts.py`. What is done is kept in the output folder: a run goes on where it ended.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModel, PreTrainedModel

from benchmarks.growing import grow
from benchmarks.grown_dense_tasks import dense_tables, dense_tasks
from benchmarks.grown_judging import Judgement, calibrated, outliers_an_image, rows_of
from benchmarks.grown_photographs import crops_to_calibrate, crops_to_report, squares_to_grow
from benchmarks.grown_variants import CHECKPOINT, VARIANTS
from benchmarks.options import Device, one_of, place_of
from benchmarks.photographs import SPLITS
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.verdict import CLEAN
from ttreg_hf.loading import load_processor
from ttreg_hf.writing import whole_directory, write_file

RESULT_FILE, TABLE_FILE = "result.json", "grown.md"
DENSE_FILE, DENSE_TABLE_FILE = "dense_tasks.json", "dense_tasks.md"
CALIBRATION = "calibration"
CAPTION = (
    "The artifacts were trained in by this project, with the marks that the detector looks for. The table shows that "
    "neurons which nobody wired are found, and that the model before growing comes back; it shows no benefit."
)
LEGEND = (
    "Last columns: 1 - cosine of the final hidden states to the model before growing, with 95 % intervals over "
    "photographs that nothing else has seen."
)


@dataclass(frozen=True)
class Job:
    """One model to grow and to judge.

    Args:
        base: folder of the model before growing.
        photographs: folder with its splits.
        composites: folder with `train.parquet` and `test.parquet`; `None`: no dense tasks.
        output: folder of this model.
        variant: its name.
        seed: of growing and calibrating.
        steps: of the optimiser.
        num_images: to calibrate on.
        device: to run on.
    """

    base: Path
    photographs: Path
    composites: Path | None
    output: Path
    variant: str
    seed: int
    steps: int
    num_images: int
    device: str


def run_job(job: Job) -> None:
    """What is left to do of it: grow, calibrate and hold against the model before growing, run dense tasks."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    job.output.mkdir(parents=True, exist_ok=True)
    original = _load(job, job.base).requires_grad_(False)
    seconds = {"growing": _timed(_grow, job, original)} if not (job.output / CHECKPOINT).exists() else {}
    grown = _load(job, job.output / CHECKPOINT)
    if not (job.output / RESULT_FILE).exists():
        write_file(job.output / RESULT_FILE, _judged(job, original, grown, seconds).to_json().encode())
    result = CalibrationResult.load(job.output / CALIBRATION)
    if job.composites is not None and result.register_neurons and not (job.output / DENSE_FILE).exists():
        found = dense_tasks(original, grown, result, job.composites, load_processor(str(job.base)))
        write_file(job.output / DENSE_FILE, json.dumps(found, indent=2, allow_nan=False).encode())
        _say(job, "dense tasks done")


def _grow(job: Job, original: PreTrainedModel) -> None:
    variant = VARIANTS[job.variant]
    squares = squares_to_grow(job.photographs, variant.image_size).to(original.device)
    grown = grow(original, squares, variant, steps=job.steps, seed=job.seed, say=lambda line: _say(job, line))
    with whole_directory(job.output / CHECKPOINT) as folder:
        grown.save_pretrained(folder)
        load_processor(str(job.base)).save_pretrained(folder)


def _judged(job: Job, original: PreTrainedModel, grown: PreTrainedModel, seconds: dict[str, float]) -> Judgement:
    variant = VARIANTS[job.variant]
    crops = crops_to_calibrate(job.photographs, variant.image_size, job.num_images, seed=job.seed)
    result, took = calibrated(grown, crops, job.output / CALIBRATION, seed=job.seed)
    _say(job, f"{result.verdict}, {len(result.register_neurons)} neurons")
    report = crops_to_report(job.photographs, variant.image_size)
    layers = [neuron.layer for neuron in result.register_neurons]
    is_clean = result.verdict == CLEAN
    return Judgement(
        variant=job.variant,
        seed=job.seed,
        expected=variant.expected,
        verdict=result.verdict,
        reasons=result.reasons,
        layers={str(layer): layers.count(layer) for layer in sorted(set(layers))},
        norm_threshold=result.config.norm_threshold,
        detection_layer=result.config.detection_layer,
        outliers_an_image=0.0 if is_clean else outliers_an_image(grown, result, report),
        rows=() if is_clean else rows_of(original, grown, result, report),
        seconds={**seconds, "calibrating": took},
    )


def _load(job: Job, folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, dtype=torch.float32).to(job.device).eval()


def _timed(function: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def table(results: Sequence[dict[str, Any]]) -> str:
    """Judgements as Markdown, with what they do not show."""
    heads = ("variant", "seed", "verdict", "right", "neurons by layer", "outliers an image", "model",
             "outliers / grown", "CLS", "ordinary patches", "outlier patches", "seconds")  # fmt: skip
    lines = [CAPTION, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for found in results:
        layers = ", ".join(f"{layer}: {count}" for layer, count in found["layers"].items())
        right = "yes" if found["verdict"] in found["expected"] else "no"
        first = (found["variant"], found["seed"], found["verdict"], right, layers, f"{found['outliers_an_image']:.1f}")
        seconds = " + ".join(f"{value:.0f}" for value in found["seconds"].values())
        for place, row in enumerate(found["rows"] or [{"model": "", "outlier_ratio": None, "distances": {}}]):
            distances = [_interval(row["distances"].get(name)) for name in heads[8:11]]
            cells = [row["model"], _interval(row["outlier_ratio"]), *distances, "" if place else seconds]
            lines.append(f"| {' | '.join(map(str, [*(first if not place else [''] * 6), *cells]))} |")
    lines += ["", LEGEND]
    return "\n".join(lines) + "\n"


def _interval(found: Sequence[float] | None) -> str:
    if not found:
        return ""
    return f"{found[0]:.4f}" + ("" if len(found) < 3 else f" ({found[1]:.4f} to {found[2]:.4f})")


def _say(job: Job, line: str) -> None:
    print(f"{job.variant}, seed {job.seed}: {line}", flush=True)


def _run_all(jobs: Sequence[Job], processes: int) -> None:
    """A job that fails is named, and the others go on."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(running):
            if error := future.exception():
                _say(running[future], f"failed: {type(error).__name__}: {error}")


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
    _run_all(jobs, processes)
    done = [job.output / RESULT_FILE for job in jobs if (job.output / RESULT_FILE).exists()]
    text = table([json.loads(path.read_text(encoding="utf-8")) for path in done])
    write_file(output / TABLE_FILE, text.encode())
    print(text)
    dense = {f"{job.variant}, {job.seed}": job.output / DENSE_FILE for job in jobs}
    dense = {name: file for name, file in dense.items() if file.exists()}
    if dense:
        text = dense_tables(dense)
        write_file(output / DENSE_TABLE_FILE, text.encode())
        print(text)
    if len(done) < len(jobs):
        raise typer.Exit(1)


def main() -> None:
    """The command line of `scripts/grown_artifacts.py`."""
    typer.run(grown_artifacts)
