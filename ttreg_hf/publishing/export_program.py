"""A model as a program of another runtime: transformers' own exporters write it and run it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.publishing.export_format import ONNX, OPENVINO, ExportFormat, has_exporters
from ttreg_hf.publishing.onnx_by_torch import OnnxSession, session_options, write_onnx

Inputs = dict[str, Any]
_MOST_IMAGES = 1024  # in one batch of an exported model


def write_program(
    model: Any, inputs: Inputs, export_format: ExportFormat, folder: Path, calibration: Sequence[Inputs] = ()
) -> None:
    """Export a model for batches of any size.

    Args:
        model: in eval mode, float32, on the CPU.
        inputs: an example of what it takes, of two images: one alone would be taken for the only size.
        export_format: that is wanted.
        folder: that exists.
        calibration: inputs that the scales of int8 activations are measured on; without any it stays float32.
    """
    shapes = _dynamic_shapes(inputs)
    if not has_exporters():
        write_onnx(model, inputs, shapes, folder)
        return
    from transformers.exporters import AutoExportConfig, AutoHfExporter

    config: Any = AutoExportConfig.from_dict({"export_format": export_format.name, "dynamic_shapes": shapes})
    config.quantizer = _quantizer(export_format, calibration) if calibration else None
    exported = AutoHfExporter.from_config(config).export(model, dict(inputs), config=config)
    exported.save_pretrained(folder)


def open_program(folder: Path, export_format: ExportFormat) -> Callable[..., Any]:
    """A program that `write_program` wrote, on the CPU, in the number format it was written in.

    It computes with as many threads as torch, where its runtime can be told so, and is called as the model was.
    """
    if not has_exporters():
        return OnnxSession(folder, torch.get_num_threads())
    from transformers.exporters import ExportedModel

    return ExportedModel.from_pretrained(folder, device="cpu", local_files_only=True, **_runner_options(export_format))


def _dynamic_shapes(inputs: Inputs) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    return {name: {0: batch} if isinstance(value, Tensor) else None for name, value in inputs.items()}


def _runner_options(export_format: ExportFormat) -> dict[str, Any]:
    threads = torch.get_num_threads()
    if export_format.name == ONNX:
        return {"session_options": session_options(threads)}
    if export_format.name == OPENVINO:  # which rounds to bfloat16 on processors that can, unless told otherwise
        return {"config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}}
    return {}


def _quantizer(export_format: ExportFormat, calibration: Sequence[Inputs]) -> Any:
    """Static scales: weights one a channel, activations one a tensor; of what multiplies matrices, where told so."""
    from transformers import exporters

    if export_format.name == OPENVINO:
        return exporters.NNCFOpenVINOQuantizer(
            exporters.NNCFQuantizationConfig(subset_size=len(calibration)), calibration_dataset=calibration
        )
    static = exporters.OnnxRuntimeStaticConfig(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return exporters.OnnxRuntimeQuantizer(static, calibration_dataset=calibration)
