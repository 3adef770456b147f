"""The whole chain on a planted toy model, bundled photographs and drawn scenes, offline, as a user does it.

inspect -> calibrate -> apply -> save -> load again through `AutoModel` -> verify -> pictures.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, BitImageProcessorPil

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import inspect_norms
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.photographs import load_photographs, photographs_to_picture
from ttreg_hf.images.progress import Progress, Say, silent
from ttreg_hf.images.scenes import draw_scenes
from ttreg_hf.pictures.numbers import percent
from ttreg_hf.pictures.picture_files import write_before_after
from ttreg_hf.planted import PLANTED_NOTE, PlantedModel, planted_model
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.register_neuron import RegisterNeuron
from ttreg_hf.report.calibration_folder import REPORT_FILE, calibrate_to_folder
from ttreg_hf.report.verification_tables import notes_of
from ttreg_hf.writing import whole_directory

_SIZE, _PATCH_SIZE = 224, 14
_PICTURES = 48


def run_quickstart(
    output: str | Path, *, overwrite: bool = False, say: Say = print, progress: Progress = silent
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
        processor = BitImageProcessorPil(
            size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}, do_center_crop=True
        )
        named = _pictures()
        planted = _plant_and_save(folder / "base", named.images, processor)
        say(f"base         planted toy DINOv2, {_listed(planted.register_neurons)} wired in as register neurons")
        _inspect(planted, named, processor, say, progress)
        result = _calibrate(planted, named, folder / "calibration", processor, say, progress)
        loaded = _apply(planted, result, folder / "checkpoint", processor, say)
        pictures = write_before_after(
            planted.model,
            loaded,
            photographs_to_picture(),
            processor,
            folder / "pictures",
            detection_layer=result.norms.detection_layer,
            norm_threshold=result.norms.norm_threshold,
            caption=PLANTED_NOTE,
        )
    output = Path(output)
    for part in ("base", "calibration", "checkpoint", "pictures"):
        say(f"{'wrote' if part == 'base' else '':<13}{output / part}")
    say(f"{'open':<13}{output / 'calibration' / REPORT_FILE}")
    say("The toy shows the mechanism, not the benefit: its features are random. Next: ttreg inspect MODEL")
    return {
        "planted": sorted(map(_pair, planted.register_neurons)),
        "found": sorted(map(_pair, result.register_neurons)),
        "verdict": result.verdict,
        "calibration": result.to_dict(),
        "output": str(output),
        "pictures": [str(output / "pictures" / picture.name) for picture in pictures],
    }


def _pictures() -> NamedImages:
    """Enough for every verdict."""
    photographs = load_photographs()
    scenes = draw_scenes(_PICTURES - len(photographs))
    description = f"{len(photographs)} bundled photographs and {len(scenes)} drawn scenes"
    return NamedImages([*photographs, *scenes], DataSource(description=description))


def _inspect(planted: PlantedModel, named: NamedImages, processor: Any, say: Say, progress: Progress) -> None:
    config = CalibrationConfig(num_images=len(named.images))
    norms = inspect_norms(planted.model, named, config=config, processor=processor, progress=progress)
    block = norms.detection_layer
    say(
        f"inspect      block {block}: median patch norm {norms.median[block]:.1f}, max {norms.max[block]:.1f}; "
        f"outliers (above {norms.norm_threshold:.1f}) begin at block {norms.first_outlier_layer}, in "
        f"{norms.photographs_with_outliers} of {norms.num_photographs} pictures"
    )


def _calibrate(
    planted: PlantedModel, named: NamedImages, directory: Path, processor: Any, say: Say, progress: Progress
) -> CalibrationResult:
    result = calibrate_to_folder(
        planted.model,
        named,
        directory,
        config=CalibrationConfig(num_images=len(named.images)),
        processor=processor,
        note=PLANTED_NOTE,
        progress=progress,
    )
    found, truth = set(map(_pair, result.register_neurons)), set(map(_pair, planted.register_neurons))
    say(
        f"calibrate    found {_listed(result.register_neurons)}: {len(found & truth)} of {len(truth)} planted, "
        f"{len(found - truth)} others; verdict {result.headline}"
    )
    return result


def _apply(planted: PlantedModel, result: CalibrationResult, directory: Path, processor: Any, say: Say) -> Any:
    """Patch, save, and load again as others do."""
    patched = add_test_time_registers(planted.model, result)
    save_checkpoint(patched, directory, processor=processor, calibration=result)
    loaded = AutoModel.from_pretrained(directory).eval()
    _check_same_outputs(patched, loaded, planted.sample[:4])
    say("apply        saved, loaded again through AutoModel, outputs equal")
    found = result.verification
    if found is not None:
        say(
            f"verify       outlier patches {percent(found.outlier_fraction_before)} -> "
            f"{percent(found.outlier_fraction_after)}, cosine of the CLS feature to the base model "
            f"{found.feature_similarity:.4f}, on {found.num_photographs} pictures that no stage had seen"
        )
        for note in notes_of(found):
            say(f"{'':<13}{note}")
    return loaded


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


@torch.no_grad()
def _check_same_outputs(saved: Any, loaded: Any, pixel_values: Tensor) -> None:
    difference = (saved(pixel_values).last_hidden_state - loaded(pixel_values).last_hidden_state).abs().max()
    if difference > 1e-6:
        raise RuntimeError(
            "The loaded checkpoint must give the outputs of the model that was saved, but differs by "
            f"{difference:.2e}. Please report it with the output of `ttreg env`."
        )


def _pair(neuron: RegisterNeuron) -> tuple[int, int]:
    return neuron.layer, neuron.neuron


def _listed(neurons: Any) -> str:
    return ", ".join(f"{neuron.layer}/{neuron.neuron}" for neuron in neurons)
