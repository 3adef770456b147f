"""`ttreg env`: what a report of a problem needs to say."""

import importlib.metadata
import os
import platform

import ttreg_hf
from ttreg_hf.cli import options
from ttreg_hf.cli.printer import Printer, new_table

_PACKAGES = (
    "torch", "transformers", "huggingface_hub", "datasets", "accelerate", "safetensors", "numpy", "pillow", "triton",
)  # fmt: skip


def env(json: options.Json = False) -> None:
    """Versions and devices, to paste into a report of a problem."""
    import torch

    printer = Printer(json)
    versions = {"ttreg_hf": ttreg_hf.__version__, "python": platform.python_version()} | {
        name: _version(name) for name in _PACKAGES
    }
    versions["torch"] += f" (CUDA {torch.version.cuda or 'no'})"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    machine = {"platform": platform.platform(), "cpus": str(os.cpu_count()), "gpus": ", ".join(gpus) or "none"}
    machine["shift"] = _shift_form(bool(gpus) and _has_triton())
    table = new_table("what", "version", left=("what", "version"))
    for name, value in (versions | machine).items():
        table.add_row(name, value)
    printer.show(table)
    printer.result(versions | machine)


def _has_triton() -> bool:
    try:
        import ttreg_hf.kernels.shift_kernel  # noqa: F401
    except ImportError:
        return False
    return True


def _shift_form(has_kernel: bool) -> str:
    kernel = "`ttreg_hf.kernels.use_triton(model)` for the Triton kernel" if has_kernel else "no Triton kernel here"
    return f"plain PyTorch ({kernel})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
