"""What a patched model costs beside the model that it patches, and beside what else people do.

Run it through `scripts/benchmark_inference.py`.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.benchmarks.models import random_model
from ttreg_hf.benchmarks.timing import machine, peak_memory, time_interleaved
from ttreg_hf.families import blocks_of, family_of, trunk_of
from ttreg_hf.known_checkpoints import known_checkpoint
from ttreg_hf.modeling.test_time_registers import NeuronShift, TokenLayout
from ttreg_hf.modeling.ttreg_base import down_projection, neurons_by_layer


def benchmark(
    size: Annotated[list[str], typer.Option(help="Of the random model; may be given again.")],
    batch_size: Annotated[list[int], typer.Option(help="May be given again.")],
    image_size: Annotated[list[int], typer.Option(help="May be given again.")],
    mode: Annotated[list[str], typer.Option(help="eager, compile or graph (CUDA graphs); may be given again.")],
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 20,
    device: Annotated[str | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure and print a table; every time is a ratio to the base model's in the same rounds."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{dtype}; {machine(place)}; ratios to the base model, medians of {rounds} interleaved rounds")
    results = []
    for name in size:
        for pixels in image_size:
            models = _models(name, pixels, place, getattr(torch, dtype))
            for images in batch_size:
                for how in mode:
                    results.append(_measure(models, name, how, images, pixels, place, rounds))
                    print(_line(results[-1]), flush=True)
    if output is not None:
        report = {"machine": machine(place), "dtype": dtype, "results": results}
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _models(size: str, image_size: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The base model and its rivals, all with the same weights."""
    base = random_model(size, image_size=image_size, device=device, dtype=dtype)
    pairs = _neurons(size, base)
    patched = add_test_time_registers(base, pairs)
    models: dict[str, Any] = {
        "base": base,
        "patched": patched,
        "token alone": _without_shift(patched),
        "hooks with clone": _hooked(copy.deepcopy(base), pairs),
    }
    if size.startswith("dinov2"):
        fields = {key: value for key, value in base.config.to_dict().items() if key in _SHARED}
        with device:
            trained = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**fields, num_register_tokens=4))
        models["4 trained registers"] = trained.eval().to(dtype)
    return models


_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "mlp_ratio",
    "use_swiglu_ffn",
)


def _neurons(size: str, base: Any) -> list[list[int]]:
    """The 45 published neurons of DINOv2-L; for other sizes as many, in six layers at the same depth."""
    known = known_checkpoint("facebook/dinov2-large")
    if size == "dinov2-large" and known is not None and known.register_neurons is not None:
        return [list(pair) for pair in known.register_neurons]
    last = len(blocks_of(base)) * 3 // 4
    return [[last - index % 6, index // 6] for index in range(45)]


def _without_shift(patched: Any) -> Any:
    """Registers come and go, but no neuron is moved: the least that an extra token costs."""
    twin = add_test_time_registers(patched, patched.config.register_neurons)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NeuronShift):
                setattr(module, name, nn.Identity())
    return twin


def _hooked(model: Any, pairs: list[list[int]]) -> Any:
    """What people do by hand: hooks that append a token and clone the activations to write into them."""
    layout = TokenLayout(family_of(model).num_prefix_tokens, 1, (1, 1))
    trunk = trunk_of(model)
    trunk.get_submodule(family_of(model).embeddings).register_forward_hook(lambda m, args, out: layout.insert(out))
    blocks = blocks_of(model)
    blocks[-1].register_forward_hook(lambda m, args, out: layout.remove(out))
    for layer, neurons in neurons_by_layer(pairs).items():

        def move(module: Any, args: tuple[Tensor], neurons: list[int] = neurons) -> tuple[Tensor]:
            acts = args[0].clone()
            for neuron in neurons:
                column = acts[:, :, neuron]
                strongest = column.abs().argmax(1, keepdim=True)
                acts[:, layout.registers, neuron] = column.gather(1, strongest)
                acts[:, layout.patches, neuron] = 0
            return (acts,)

        down_projection(blocks[layer]).register_forward_pre_hook(move)
    return model


def _measure(
    models: dict[str, Any], size: str, mode: str, images: int, pixels: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    batch = torch.randn(images, 3, pixels, pixels, device=device, dtype=next(models["base"].parameters()).dtype)
    calls = {
        name: _call(model, batch, mode) for name, model in models.items() if mode == "eager" or "hooks" not in name
    }
    timings = time_interleaved(calls, device=device, rounds=rounds, warm_up=3)
    base, memory = timings["base"], {name: peak_memory(calls[name], device) for name in ("base", "patched")}
    return {
        "model": size,
        "mode": mode,
        "batch_size": images,
        "image_size": pixels,
        "base ms": 1000 * base.median,
        "spread": base.spread,
        "ratio": {name: timing.median / base.median for name, timing in timings.items() if name != "base"},
        "memory ratio": memory["patched"] / memory["base"] if memory["base"] and memory["patched"] else None,
    }


def _call(model: Any, batch: Tensor, mode: str) -> Callable[[], object]:
    """One forward pass, as a call without arguments."""
    if mode == "compile":
        model = torch.compile(model, fullgraph=True)
    elif mode == "graph":
        return _graphed(model, batch)
    elif mode != "eager":
        raise ValueError(f"`--mode` is eager, compile or graph, got {mode!r}.")

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


def _line(result: dict[str, Any]) -> str:
    ratios = "  ".join(f"{name} {ratio:.3f}" for name, ratio in result["ratio"].items())
    memory = f"  memory {result['memory ratio']:.3f}" if result["memory ratio"] else ""
    return (
        f"{result['model']:<13}{result['image_size']:>4} px x{result['batch_size']:<4}{result['mode']:<8}"
        f"base {result['base ms']:8.2f} ms +-{100 * result['spread']:4.1f} %  {ratios}{memory}"
    )


def main() -> None:
    """The command line of `scripts/benchmark_inference.py`."""
    typer.run(benchmark)
