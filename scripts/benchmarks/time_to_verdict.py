"""How long a verdict takes: `ttreg calibrate` on photographs in a folder, from the start of its process to the report.

Run it through `scripts/benchmark_verdict.py`. The model has a published size, and register neurons that are known.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from benchmarks.models import DINOV2_SIZES, processor_for
from benchmarks.options import Device, Dtype, one_of, place_of
from benchmarks.shards import encoded_crops
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.measuring.interleaved import machine
from ttreg_hf.planted import PlantedModel, planted_model

_IMAGE_SIZE, _TO_TUNE = 224, 64  # pixels; photographs that the triggers are tuned on


def benchmark(
    size: Annotated[
        str, typer.Option(callback=one_of(*DINOV2_SIZES), help=f"Of the model: {', '.join(DINOV2_SIZES)}.")
    ] = "dinov2-large",
    num_images: Annotated[int, typer.Option(min=_TO_TUNE, help="JPEG photographs.")] = 1000,
    dtype: Dtype = "float32",
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure once, and say what was found; exit code 1 if that is not what was planted."""
    place = place_of(device)
    with TemporaryDirectory() as name:
        folder = Path(name)
        planted = _save(size, num_images, folder)
        arguments = ["--dataset", str(folder / "images"), "--num-images", str(num_images), "--dtype", dtype]
        command = ["calibrate", str(folder / "model"), *arguments, "--device", str(place)]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "ttreg_hf", *command, "--output", str(folder / "calibration")],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        result = CalibrationResult.load(folder / "calibration")
    found = {(neuron.layer, neuron.neuron) for neuron in result.register_neurons}
    truth = {(neuron.layer, neuron.neuron) for neuron in planted.register_neurons}
    report: dict[str, Any] = {
        "machine": machine(place),
        "model": size,
        "dtype": dtype,
        "images": num_images,
        "seconds": seconds,
        "verdict": result.verdict,
        "planted": len(truth),
        "found": len(found & truth),
        "foreign": len(found - truth),
    }
    print(
        f"{size}, {dtype}, {num_images} photographs, {report['machine']}: {result.verdict} after {seconds:.1f} s; "
        f"{len(found & truth)} of {len(truth)} planted neurons found, {len(found - truth)} others"
    )
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if found != truth:
        raise typer.Exit(1)


def _save(size: str, num_images: int, folder: Path) -> PlantedModel:
    """The model in `model/`, photographs in `images/`."""
    crops = encoded_crops(num_images)
    (folder / "images").mkdir()
    for place, crop in enumerate(crops):
        (folder / "images" / f"{place:05d}.jpg").write_bytes(crop)
    processor = processor_for(_IMAGE_SIZE)
    fields = DINOV2_SIZES[size]
    depth = fields["num_hidden_layers"]
    planted = planted_model(
        "dinov2",
        trigger="low_information",
        neurons_per_layer={depth // 4: 4, depth // 3: 3, depth // 2: 3},
        images=torch.stack([to_pixel_values({"bytes": crop}, processor) for crop in crops[:_TO_TUNE]]),
        image_size=_IMAGE_SIZE,
        **fields,
    )
    planted.model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return planted


def main() -> None:
    """The command line of `scripts/benchmark_verdict.py`."""
    typer.run(benchmark)
