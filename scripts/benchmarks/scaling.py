"""How a long calibration scales over the processes of one host: same images, same model, more and more processes.

Run it through `scripts/benchmark_scaling.py`. Each number of processes is a launch of its own by torchrun, which calls
this module as a worker.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator

from benchmarks.models import processor_for, random_model, search_of_random
from benchmarks.options import BatchSize, Device, Dtype, ImageSize, Size, place_of
from benchmarks.shards import encoded_crops, write_shards
from benchmarks.stopwatch import Stopwatch
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig, RunConfig
from ttreg_hf.images.data_sets import find_images
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.images.workers import decode_workers
from ttreg_hf.measuring.interleaved import machine
from ttreg_hf.writing import write_file


@dataclass(frozen=True)
class Plan:
    """What every launch of a comparison runs.

    Args:
        size: of the random model.
        images: pattern of the shards.
        num_images: over all processes.
        batch_size: of each process.
        image_size: in pixels.
        dtype: of the model.
        device: `cuda` or `cpu`.
        workers: that decode, for each process; `None` for as many as a calibration takes by itself.
        top_k: neurons that are chosen.
    """

    size: str
    images: str
    num_images: int
    batch_size: int
    image_size: int
    dtype: str
    device: str
    workers: int | None
    top_k: int = 45


@dataclass(frozen=True)
class Launched:
    """What one number of processes took.

    Args:
        processes: that took part, as they counted themselves.
        machine: of the first.
        workers: that decoded, for each process.
        seconds: of the whole calibration, its model loaded.
        score_seconds: of the pass over all images, from asking for the first to the end of the sums over processes.
        computed: share of `score_seconds` in which the first process's device computed; the rest it waited for images.
        reduced: share of `score_seconds` in sums over processes, waiting for the slowest one included.
    """

    processes: int
    machine: str
    workers: int
    seconds: float
    score_seconds: float
    computed: float
    reduced: float


def benchmark(
    folder: Annotated[Path, typer.Argument(help="Keeps shards and results; shards that lie there are used again.")],
    processes: Annotated[list[int], typer.Option(min=1, help="May be given again; the first one is compared with.")],
    size: Size = "dinov2-giant",
    num_images: Annotated[int, typer.Option(min=1, help="Over all processes.")] = 50_000,
    shards: Annotated[int, typer.Option(min=1, help="Parquet files.")] = 50,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="That decode, for each process; automatic by default.")] = None,
) -> None:
    """Calibrate with each number of processes, and compare speed and result; exit code 1 if a result differs."""
    place = str(place_of(device))
    images = write_shards(folder / f"{num_images}-in-{shards}", num_images=num_images, shards=shards)
    plan = Plan(size, images, num_images, batch_size, image_size, dtype, place, workers)
    rows: list[dict[str, Any]] = []
    for count in processes:
        output = folder / f"{size}-by-{count}"
        _launch(plan, count, output)
        rows.append(_row(folder / f"{size}-by-{processes[0]}", output, plan))
        print(_line(rows[-1]), flush=True)
        write_file(folder / f"{size}.json", json.dumps({"plan": asdict(plan), "rows": rows}, indent=2).encode())
    if not all(row["same neurons"] and row["score difference"] <= 1e-6 for row in rows):
        raise typer.Exit(1)


def _launch(plan: Plan, processes: int, output: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = ["-m", "benchmarks.scaling", json.dumps(asdict(plan)), str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # where this module was found
    subprocess.run([sys.executable, *command, *arguments], check=True, stdin=subprocess.DEVNULL, env=environment)


def run_worker(plan: Plan, output: Path) -> None:
    """One process of a launch: calibrate; the first one writes what was found and how long it took."""
    accelerator = Accelerator(cpu=plan.device == "cpu")
    place = accelerator.device
    model = random_model(plan.size, image_size=plan.image_size, device=place, dtype=getattr(torch, plan.dtype))
    processor = processor_for(plan.image_size)
    photographs = [to_pixel_values({"bytes": crop}, processor) for crop in encoded_crops(16)]
    search = search_of_random(model, torch.stack(photographs))
    stopwatch = Stopwatch(accelerator)
    accelerator.wait_for_everyone()
    start = time.perf_counter()
    result = calibrate(
        model,
        find_images(plan.images),
        config=CalibrationConfig(
            num_images=plan.num_images,
            batch_size=plan.batch_size,
            norm_threshold=search.rule.norm_threshold,
            detection_layer=search.rule.detection_layer,
            first_layer=search.first_layer,
            last_layer=search.last_layer,
            top_k=plan.top_k,
        ),
        processor=processor,
        accelerator=accelerator,
        run=RunConfig(state_directory=output / "state", workers=plan.workers),
        progress=stopwatch.watch,
    )
    seconds = time.perf_counter() - start
    if accelerator.is_main_process:
        result.save(output)
        launched = Launched(
            processes=accelerator.num_processes,
            machine=machine(place),
            workers=decode_workers(place, accelerator.num_processes) if plan.workers is None else plan.workers,
            seconds=seconds,
            score_seconds=stopwatch.score_seconds,
            computed=stopwatch.computed() / stopwatch.score_seconds,
            reduced=stopwatch.reduced / stopwatch.score_seconds,
        )
        write_file(output / "launched.json", json.dumps(asdict(launched), indent=2).encode())
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _row(first: Path, output: Path, plan: Plan) -> dict[str, Any]:
    launched, alone = (json.loads((path / "launched.json").read_text(encoding="utf-8")) for path in (output, first))
    found, expected = CalibrationResult.load(output), CalibrationResult.load(first)
    times = launched["processes"] / alone["processes"]
    return {
        **launched,
        "images/s": plan.num_images / launched["score_seconds"],
        "efficiency": alone["score_seconds"] / launched["score_seconds"] / times,
        "efficiency of the whole": alone["seconds"] / launched["seconds"] / times,
        "images scored": found.provenance.images_scored,
        "same neurons": _places(found) == _places(expected),
        "score difference": float(((found.scores - expected.scores).abs() / expected.scores.clamp_min(1e-30)).max()),
    }


def _places(result: CalibrationResult) -> list[tuple[int, int]]:
    return [(neuron.layer, neuron.neuron) for neuron in result.register_neurons]


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['processes']} process(es) on {row['machine']}, {row['workers']} workers each: "
        f"{row['images scored']} images in {row['score_seconds']:.1f} s ({row['seconds']:.1f} s with verification), "
        f"{row['images/s']:.0f} images/s, efficiency {row['efficiency']:.3f} "
        f"({row['efficiency of the whole']:.3f}), computing {row['computed']:.1%}, sums {row['reduced']:.2%}; "
        f"same neurons: {row['same neurons']}, scores differ by {row['score difference']:.1e}"
    )


def main() -> None:
    """The command line of `scripts/benchmark_scaling.py`."""
    typer.run(benchmark)


if __name__ == "__main__":
    run_worker(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2]))
