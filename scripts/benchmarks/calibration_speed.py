"""How fast calibration is: against a plain forward pass, and against one image at a time with all activations copied.

Run it through `scripts/benchmark_calibration.py`; under `torchrun` it also shows how it scales.
"""

import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.models import processor_for, random_model, search_of_random
from benchmarks.options import BatchSize, Device, Dtype, ImageSize, Rounds, Size, place_of
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.score_pass import ScorePass
from ttreg_hf.calibration.search import Search
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.progress import say_nothing, silent
from ttreg_hf.images.workers import decode_workers
from ttreg_hf.measuring.interleaved import machine, peak_memory, synchronize, time_interleaved
from ttreg_hf.measuring.tower import VisionTower


def benchmark(
    size: Size = "dinov2-large",
    image_size: ImageSize = 224,
    batch_size: BatchSize = 64,
    dtype: Dtype = "bfloat16",
    rounds: Rounds = 15,
    baseline_images: Annotated[int, typer.Option(min=1, help="Images that the slow baseline gets.")] = 32,
    real_images: Annotated[
        int, typer.Option(min=0, help="JPEG photographs decoded in workers; 0 skips that part.")
    ] = 2048,
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure and print a table."""
    processes = Processes.launched(device)
    place = place_of(processes.device or device)
    model = random_model(size, image_size=image_size, device=place, dtype=getattr(torch, dtype))
    tower = VisionTower.of(model)
    pixels = torch.randn(batch_size, 3, image_size, image_size, device=place)
    search = search_of_random(model, pixels)
    rows = _compute(tower, pixels, search, rounds)
    slow = _SlowBaseline(tower, search)
    rows["slow baseline"] = {"images/s": baseline_images / slow.seconds(pixels[:baseline_images])}
    if real_images:
        read = functools.partial(to_pixel_values, processor=processor_for(image_size))
        seconds = slow.seconds(_photographs(baseline_images), read)
        rows["slow baseline, photographs"] = {"images/s": baseline_images / seconds}
    slow.remove()
    if real_images:
        rows |= _real(tower, search, processes, image_size, batch_size, real_images)
    plain = rows["plain forward"]["images/s"]
    for row in rows.values():
        row["of plain forward"] = row["images/s"] / plain
    report = {
        "machine": machine(place),
        "model": size,
        "dtype": dtype,
        "image_size": image_size,
        "batch_size": batch_size,
        "processes": processes.world,
        "search": dataclasses.asdict(search),
        "rows": rows,
    }
    if processes.rank == 0:
        _print(report)
        if output is not None:
            output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _compute(tower: VisionTower, pixels: Tensor, search: Search, rounds: int) -> dict[str, dict[str, Any]]:
    """Images that are on the device already: the cost of finding neurons alone."""
    scorer = ScorePass(tower, search, CalibrationConfig(), Processes(), say_nothing)
    batch = Batch(pixels, tuple(range(len(pixels))))

    def calibrate() -> None:
        with scorer.recorder() as recorder:
            scorer.score(recorder, batch)

    def record() -> None:
        with scorer.recorder() as recorder:
            recorder(pixels)

    calls = {"plain forward": lambda: tower.model(pixels), "calibration": calibrate, "  recording only": record}
    timings = time_interleaved(calls, device=pixels.device, rounds=rounds)
    return {
        name: {
            "images/s": len(pixels) / timing.median,
            "spread": timing.spread,
            "peak memory GB": (peak_memory(calls[name], pixels.device) or 0) / 1e9,
        }
        for name, timing in timings.items()
    }


class _SlowBaseline:
    """One image at a time, every layer's activations copied to the CPU, as the released code works."""

    def __init__(self, tower: VisionTower, search: Search) -> None:
        self.model: Any = tower.model
        self.search = search
        self.acts: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.scores_LF = torch.zeros(tower.num_layers, max(tower.widths))
        self.handles: list[Any] = []
        for layer, block in enumerate(tower.blocks):

            def keep_acts(module: Any, args: Any, layer: int = layer) -> None:
                self.acts[layer] = args[0].detach().cpu()

            def keep_output(module: Any, args: Any, output: Tensor, layer: int = layer) -> None:
                self.outputs[layer] = output.detach().cpu()

            self.handles.append(tower.down_projections[layer].register_forward_pre_hook(keep_acts))
            self.handles.append(block.register_forward_hook(keep_output))

    @torch.no_grad()
    def seconds(self, images: Any, read: Callable[[Any], Tensor] = lambda image: image) -> float:
        """For these images, each read to `(3, H, W)` in this process, once one of them has gone through to warm up."""
        self.model(read(images[0])[None].to(self.model.device, self.model.dtype))
        synchronize(self.model.device)
        start = time.perf_counter()
        for image in images:
            self.model(read(image)[None].to(self.model.device, self.model.dtype))
            norms_T = self.outputs[self.search.detection_layer][0].float().norm(dim=-1)
            outlier_T = norms_T > self.search.rule.norm_threshold
            if outlier_T.any():
                for layer, acts in self.acts.items():
                    self.scores_LF[layer] += acts[0, outlier_T].float().abs().mean(0)
        return time.perf_counter() - start

    def remove(self) -> None:
        """Takes its hooks off the model."""
        for handle in self.handles:
            handle.remove()


def _real(
    tower: VisionTower, search: Search, processes: Processes, image_size: int, batch_size: int, num_images: int
) -> dict[str, dict[str, Any]]:
    """JPEG photographs, decoded and preprocessed in workers: what a user sees, all processes together."""
    model: Any = tower.model
    batches = ImageBatches(
        _photographs(num_images),
        processor_for(image_size),
        num_images=num_images,
        batch_size=batch_size,
        device=model.device,
        processes=processes,
        workers=decode_workers(model.device, processes.world),
    )

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch.pixel_values)

    def load() -> None:
        for _ in batches:
            pass

    def calibrate() -> None:
        ScorePass(tower, search, CalibrationConfig(num_images=num_images), processes, say_nothing).run(
            batches, silent, store=None, early_stop=False
        )

    calls = {
        "photographs, loading only": load,
        "photographs, forward": forward,
        "photographs, calibration": calibrate,
    }
    timings = time_interleaved(calls, device=model.device, rounds=2, warm_up=0)
    return {
        name: {"images/s": num_images / timing.median, "spread": timing.spread, "workers": batches.workers}
        for name, timing in timings.items()
    }


def _photographs(num_images: int) -> list[dict[str, Any]]:
    """Undecoded, as a data set has them."""
    encoded = [path.read_bytes() for path in photograph_paths()]
    return [{"bytes": encoded[index % len(encoded)], "path": None} for index in range(num_images)]


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['model']}, {report['dtype']}, {report['image_size']} px, batches of {report['batch_size']}, "
        f"{report['processes']} process(es); {report['machine']}"
    )
    table = io.StringIO()
    for name, row in report["rows"].items():
        memory = f"{row['peak memory GB']:6.2f} GB" if "peak memory GB" in row else " " * 9
        spread = f"+- {100 * row['spread']:.1f} %" if "spread" in row else ""
        table.write(f"{name:<26}{row['images/s']:10.1f} images/s {row['of plain forward']:8.3f} {memory}  {spread}\n")
    print(table.getvalue(), end="")


def main() -> None:
    """The command line of `scripts/benchmark_calibration.py`."""
    typer.run(benchmark)
