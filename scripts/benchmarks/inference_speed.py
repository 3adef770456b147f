"""What a patched model costs beside the model that it patches, and beside what else people do.

Run it through `scripts/benchmark_inference.py`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.baselines import BASE, BASELINES, CONSTANT, PATCHED, TOKEN_ALONE, baselines_of
from benchmarks.models import random_model
from benchmarks.options import Device, Dtype, Rounds, Sizes, one_of, place_of
from benchmarks.profile import kernels_of, launches_of
from ttreg_hf.measuring.interleaved import machine, peak_memory, time_interleaved

_MODES = ("eager", "compile", "graph")
_COMPILED = (BASE, PATCHED, CONSTANT, TOKEN_ALONE)  # compiling takes half a minute a model


def benchmark(
    size: Sizes,
    batch_size: Annotated[list[int], typer.Option(min=1, help="May be given again.")],
    mode: Annotated[
        list[str],
        typer.Option(callback=one_of(*_MODES), help="eager, compile or graph (CUDA graphs); may be given again."),
    ],
    image_size: Annotated[list[int], typer.Option(min=14, help="May be given again.")] = [224],  # noqa: B006
    baseline: Annotated[
        list[str],
        typer.Option(
            callback=one_of(*BASELINES),
            help=f"Only these beside the base model: {', '.join(BASELINES)}; may be given again.",
        ),
    ] = [],  # noqa: B006
    dtype: Dtype = "bfloat16",
    rounds: Rounds = 30,
    seconds: Annotated[float, typer.Option(help="Of one configuration, after which no new round begins.")] = 20.0,
    profile: Annotated[int, typer.Option(help="Print so many kernels of base and patched model.")] = 0,
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file, written anew after every configuration.")] = None,
) -> None:
    """Measure and print a table; every time is a ratio to the base model's in the same rounds.

    A configuration that fails is a line that says why, and the others are measured all the same.
    """
    place = place_of(device)
    print(f"{dtype}; {machine(place)}; ratios to the base model, medians of {rounds} interleaved rounds", flush=True)
    results: list[dict[str, Any]] = []
    for name in size:
        for pixels in image_size:
            begin = time.perf_counter()
            base = random_model(name, image_size=pixels, device=place, dtype=getattr(torch, dtype))
            models = baselines_of(base, name, kernel=place.type == "cuda")
            models = {key: model for key, model in models.items() if not baseline or key in (BASE, *baseline)}
            print(f"{name}: models made in {time.perf_counter() - begin:.1f} s", flush=True)
            for images in batch_size:
                for how in mode:
                    case = {"model": name, "mode": how, "batch_size": images, "image_size": pixels}
                    try:
                        case |= _measure(models, how, images, pixels, place, rounds, seconds, profile)
                    except Exception as error:  # noqa: BLE001 - a record, not an end: what the machine cannot do is a result too
                        case["error"] = f"{type(error).__name__}: {error}"
                    results.append(case)
                    print(_line(case), flush=True)
                    if output is not None:
                        report = {"machine": machine(place), "dtype": dtype, "results": results}
                        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            del base, models


def _measure(
    models: dict[str, Any],
    mode: str,
    images: int,
    pixels: int,
    device: torch.device,
    rounds: int,
    seconds: float,
    profile: int,
) -> dict[str, Any]:
    torch.compiler.reset()  # what was compiled for one size would make the next one's graph a dynamic, slower one
    batch = torch.randn(images, 3, pixels, pixels, device=device, dtype=next(models[BASE].parameters()).dtype)
    calls, errors, first = {}, {}, {}
    for name, model in models.items():
        if mode == "compile" and name not in _COMPILED:
            continue
        begin = time.perf_counter()
        try:
            call = _call(model, batch, mode)
            call()
        except Exception as error:  # noqa: BLE001 - of one model; the others are compared without it
            errors[name] = f"{type(error).__name__}: {error}"
        else:
            calls[name], first[name] = call, time.perf_counter() - begin
    if BASE in errors:
        raise RuntimeError(f"the base model: {errors[BASE]}")
    timings = time_interleaved(calls, device=device, rounds=rounds, warm_up=3, limit=seconds)
    base = timings[BASE]
    measured = {} if mode == "graph" or device.type != "cuda" else calls  # a graph holds its memory all the time
    memory = {name: _memory(call, models[name], device) for name, call in measured.items()}
    found: dict[str, Any] = {
        "base ms": 1000 * base.median,
        "spread": {name: timing.spread for name, timing in timings.items()},
        "ratio": {name: timing.median / base.median for name, timing in timings.items() if name != BASE},
        "rounds": base.rounds,
        "first call s": first,
        "errors": errors,
        "memory ratio": {name: used / memory[BASE] for name, used in memory.items() if name != BASE},
    }
    if profile and device.type == "cuda" and mode != "graph":
        found["kernels"] = {name: kernels_of(calls[name], profile) for name in (BASE, PATCHED) if name in calls}
        found["launches"] = {name: launches_of(calls[name]) for name in (BASE, PATCHED) if name in calls}
    return found


def _memory(call: Callable[[], object], model: Any, device: torch.device) -> int:
    """Bytes of a model's weights and of what a call holds at most beside them, the other models left out."""
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    before = torch.cuda.memory_allocated(device)
    return weights + (peak_memory(call, device) or 0) - before


def _call(model: Any, batch: Tensor, mode: str) -> Callable[[], object]:
    """One forward pass, as a call without arguments."""
    if mode == "compile":
        model = torch.compile(model, fullgraph=True, dynamic=False)
    elif mode == "graph":
        return _graphed(model, batch)

    def run() -> object:
        with torch.inference_mode():
            return model(batch).last_hidden_state

    return run


def _graphed(model: Any, batch: Tensor) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            model(batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        model(batch)
    return graph.replay


def _line(case: dict[str, Any]) -> str:
    start = f"{case['model']:<14}{case['image_size']:>4} px x{case['batch_size']:<4}{case['mode']:<8}"
    if "error" in case:
        return f"{start}failed: {case['error']}"
    lines = [f"{start}base {case['base ms']:8.2f} ms +-{100 * case['spread'][BASE]:4.1f} % of {case['rounds']} rounds"]
    for name, ratio in case["ratio"].items():
        memory = case["memory ratio"].get(name)
        held = "" if memory is None else f"  memory {memory:.3f}"
        lines.append(f"    {name:<20} {ratio:.3f} +-{case['spread'][name]:.3f}{held}")
    lines += [f"    {name:<20} failed: {error}" for name, error in case["errors"].items()]
    for name, kernels in case.get("kernels", {}).items():
        lines.append(f"    {name}: {case['launches'][name]} kernels, the longest:")
        lines += [f"      {spent:8.3f} ms {count:>5} x {kernel[:90]}" for kernel, spent, count in kernels]
    return "\n".join(lines)


def main() -> None:
    """The command line of `scripts/benchmark_inference.py`."""
    typer.run(benchmark)
