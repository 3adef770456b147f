"""`ttreg export`: a checkpoint for another runtime."""

import contextlib
import dataclasses
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.inputs import calibration_of, model_source, open_images, open_model
from ttreg_hf.cli.printer import Printer, is_first_rank, say_working

if TYPE_CHECKING:
    from ttreg_hf.publishing.export import Export

_NUM_IMAGES = 64


class FormatName(str, Enum):
    """What can be written."""

    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Hub id or folder of a patched checkpoint.", show_default=False)
    ],
    output: options.Output,
    image_options: options.ImageOptions,
    export_format: Annotated[FormatName, typer.Option("--format", help="Of the program.")] = FormatName.onnx,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights and activations in int8; scales are measured on --dataset.")
    ] = False,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold", help="Write the zeros of neurons that go nowhere into the weights, if --dataset shows no harm."
        ),
    ] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    token: options.Token = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Export a patched checkpoint through transformers' exporters; it is compared with torch before it is handed over.

    The program is float32, or int8 with `--int8`, for the CPU and batches of any size. On the bundled photographs it
    must give what torch gives, or nothing is written. `--num-images`: 64 by default.
    """
    if (int8 or fold) != (image_options.dataset is not None):
        raise typer.BadParameter(
            "go together: scales of int8 and folding are measured on images.", param_hint="--dataset, --int8 or --fold"
        )
    from ttreg_hf.publishing.export import Folding, export_model
    from ttreg_hf.publishing.export_format import format_called
    from ttreg_hf.writing import check_output

    printer = Printer(json)
    if not is_first_rank():
        return
    format_called(export_format.value).check(int8=int8)
    check_output(output, overwrite=overwrite)
    num_images, images = image_options.num_images or _NUM_IMAGES, None
    if int8 or fold:
        images = open_images(image_options, token=token, model=checkpoint, num_images=num_images)
        images.describe(printer, num_images, where="measured on ")
    how = options.ModelOptions(revision, trust_remote_code, token, device="cpu", dtype=options.Dtype.float32)
    source = model_source(checkpoint, how)
    loaded, processor = open_model(source)
    say_working(f"exporting to {export_format.value} ...")
    with contextlib.redirect_stdout(sys.stderr):  # exporters tell how far they are
        exported = export_model(
            loaded,
            output,
            export_format=export_format.value,
            processor=processor,
            calibration_images=images.named if images is not None and int8 else None,
            fold=None if images is None or not fold else Folding(images.named, calibration_of(loaded, source)),
            num_images=num_images,
            overwrite=overwrite,
        )
    _print(printer, exported)
    printer.say(f"wrote {output}")
    printer.result({"checkpoint": checkpoint, "output": str(output), **dataclasses.asdict(exported)})


def _print(printer: Printer, exported: "Export") -> None:
    from ttreg_hf.report.table import Table

    found = exported.parity
    rows = tuple(
        (each.name, f"{each.max_difference:.1e}", f"{each.mean_difference:.1e}", f"{each.error:.1e}")
        for each in found.outputs
    )
    columns = ("output", "largest difference", "mean difference", "1 - cosine")
    printer.show_table(Table(columns, rows))
    printer.say(
        f"{exported.part} as {exported.export_format}{', int8' * found.int8}, beside torch on {found.num_images} "
        "photographs: differences are shares of the output's largest and mean value, 1 - cosine is the worst image's"
    )
    for check in exported.folding:
        printer.say(f"folded: {check.name} {check.judged:.3g}, allowed {check.bound:.3g}")
    printer.say(f"size: {exported.size / 1e6:.1f} MB, weights in float32 {exported.model_size / 1e6:.1f} MB")
    printer.say(
        f"one image: {1000 * found.seconds:.1f} ms, torch {1000 * found.torch_seconds:.1f} ms, ratio "
        f"{found.speed_ratio:.2f} ({found.threads} CPU thread{'s' * (found.threads != 1)})"
    )
