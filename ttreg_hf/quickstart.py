"""The whole chain on a planted toy model and the bundled photographs, offline, as a user does it on a checkpoint.

inspect -> calibrate -> apply -> save -> load again through `AutoModel` -> verify -> pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, BitImageProcessorPil

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batches import ImageBatches
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.driver import Progress, calibrate, inspect_norms, silent
from ttreg_hf.checkpoint import save_checkpoint
from ttreg_hf.photographs import load_photographs, photograph_paths
from ttreg_hf.planted import PlantedModel, planted_model
from ttreg_hf.report.folder import REPORT_FILE, write_report
from ttreg_hf.report.switch import record_switch
from ttreg_hf.report.switch_file import save_switch
from ttreg_hf.visualizing import write_before_after
from ttreg_hf.writing import whole_directory

CAPTION = "Planted toy ViT: it shows the mechanism, not the benefit."
_SIZE, _PATCH_SIZE = 224, 14
_PICTURED = ("cat", "coffee", "rocket")


def run_quickstart(
    output: str | Path, *, overwrite: bool = False, say: Callable[[str], None] = print, progress: Progress = silent
) -> dict[str, Any]:
    """Run the chain and write `base/`, `calibration/`, `checkpoint/` and `pictures/` below `output`.

    Args:
        output: appears whole or not at all.
        overwrite: replace what is there.
        say: takes the lines that a person reads.
        progress: shows how far it is.

    Returns:
        What was found and measured, as JSON takes it.

    Raises:
        RuntimeError: the loaded checkpoint gives other outputs than the model that was saved.
    """
    with whole_directory(output, overwrite=overwrite) as folder:
        return _run(folder, Path(output), say, progress)


def _run(folder: Path, output: Path, say: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    processor = BitImageProcessorPil(
        size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}, do_center_crop=True
    )
    photographs = load_photographs()
    images = [*photographs, *(corner for photograph in photographs for corner in _corners(photograph))]
    planted = _plant_and_save(folder / "base", images, processor)
    say(f"base         planted toy DINOv2, {_listed(planted.register_neurons)} wired in as register neurons")

    config = CalibrationConfig(num_images=len(images), batch_size=16)
    norms = inspect_norms(planted.model, images, config=config, processor=processor, progress=progress)
    say(
        f"inspect      block {norms.detection_layer}: median patch norm {norms.median[norms.detection_layer]:.1f}, "
        f"max {norms.max[norms.detection_layer]:.1f}; outliers (above {norms.norm_threshold:.1f}) begin at block "
        f"{norms.first_outlier_layer}, in {norms.images_with_outliers:.0%} of {norms.num_images} images"
    )

    name = f"{len(photographs)} bundled photographs and {len(images) - len(photographs)} crops of them"
    result = calibrate(planted.model, images, config=config, processor=processor, images_name=name, progress=progress)
    result.save(folder / "calibration")
    batches = ImageBatches(
        images, processor, num_images=len(images), batch_size=config.batch_size or 1, device=planted.model.device
    )
    save_switch(record_switch(planted.model, batches, result, note=CAPTION), folder / "calibration")
    write_report(folder / "calibration", result)
    found = {(neuron.layer, neuron.neuron) for neuron in result.register_neurons}
    truth = {(neuron.layer, neuron.neuron) for neuron in planted.register_neurons}
    say(
        f"calibrate    found {_listed(result.register_neurons)}: {len(found & truth)} of {len(truth)} planted, "
        f"{len(found - truth)} others; verdict {result.verdict}"
    )

    patched = add_test_time_registers(
        planted.model,
        result.register_neurons,
        shift_value=result.shift_value,
        calibrated_image_size=result.provenance.image_size,
    )
    save_checkpoint(patched, folder / "checkpoint", processor=processor, calibration=result)
    loaded = AutoModel.from_pretrained(folder / "checkpoint").eval()
    _check_same_outputs(patched, loaded, planted.sample[:4])
    say("apply        saved, loaded again through AutoModel, outputs equal")

    verification = result.verification
    if verification is not None:
        say(
            f"verify       outlier patches {verification.outlier_fraction_before:.2%} -> "
            f"{verification.outlier_fraction_after:.2%}, cosine of the CLS feature to the base model "
            f"{verification.feature_similarity:.4f}"
        )

    pictured = [path for path in photograph_paths() if path.stem in _PICTURED]
    pictures = write_before_after(
        planted.model,
        loaded,
        pictured,
        processor,
        folder / "pictures",
        detection_layer=norms.detection_layer,
        norm_threshold=norms.norm_threshold,
        caption=CAPTION,
    )
    for part in ("base", "calibration", "checkpoint", "pictures"):
        say(f"{'wrote' if part == 'base' else '':<13}{output / part}")
    say(f"{'open':<13}{output / 'calibration' / REPORT_FILE}")
    say("The toy shows the mechanism, not the benefit: its features are random. Next: ttreg inspect MODEL")
    return {
        "planted": sorted(truth),
        "found": sorted(found),
        "verdict": result.verdict,
        "calibration": result.to_dict(),
        "output": str(output),
        "pictures": [str(output / "pictures" / picture.name) for picture in pictures],
    }


def _plant_and_save(directory: Path, images: list[Image.Image], processor: Any) -> PlantedModel:
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    planted = planted_model(
        "dinov2",
        trigger="low_information",
        neurons_per_layer={2: 2},
        images=pixel_values,
        outlier_fraction=0.05,
        image_size=_SIZE,
        patch_size=_PATCH_SIZE,
    )
    planted.model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return planted


def _corners(photograph: Image.Image) -> list[Image.Image]:
    """Four overlapping ones."""
    width, height = photograph.size
    across, down = int(0.6 * width), int(0.6 * height)
    corners = [(left, top) for top in (0, height - down) for left in (0, width - across)]
    return [photograph.crop((left, top, left + across, top + down)) for left, top in corners]


@torch.no_grad()
def _check_same_outputs(saved: Any, loaded: Any, pixel_values: Tensor) -> None:
    difference = (saved(pixel_values).last_hidden_state - loaded(pixel_values).last_hidden_state).abs().max()
    if difference > 1e-6:
        raise RuntimeError(
            "The loaded checkpoint must give the outputs of the model that was saved, but differs by "
            f"{difference:.2e}. Please report it with the output of `ttreg env`."
        )


def _listed(neurons: Any) -> str:
    return ", ".join(f"{neuron.layer}/{neuron.neuron}" for neuron in neurons)
