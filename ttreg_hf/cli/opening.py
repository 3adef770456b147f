"""From options to what the library takes: a model with its processor, images, settings. Imports torch when called."""

import os
from collections.abc import Sized
from dataclasses import dataclass
from datetime import timedelta
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ttreg_hf.cli.options import Dtype
from ttreg_hf.cli.printing import Printer
from ttreg_hf.known_checkpoints import known_checkpoint, known_checkpoints

if TYPE_CHECKING:
    from ttreg_hf.calibration.config import CalibrationConfig
    from ttreg_hf.calibration.result import CalibrationResult


@dataclass(frozen=True)
class OpenedImages:
    """Images, what they are, and how many will be used, where that is known before they are read."""

    images: Any
    name: str
    image_column: str | None
    available: int | None

    def tell(self, printer: Printer, num_images: int, *, where: str = "") -> None:
        """The line that says which images are used."""
        count = f"the first {num_images}" if self.available is None else str(self.available)
        printer.note(f"{where}images: {self.name} ({count})")


def open_model(
    name: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    token: str | None,
    device: str | None,
    dtype: Dtype | None,
) -> tuple[Any, Any]:
    """A model on its device, and its image processor.

    Raises:
        ValueError: a device that is not there, no such checkpoint, or a model that cannot be patched.
    """
    from safetensors import SafetensorError

    from ttreg_hf.families import supported_model_types
    from ttreg_hf.loading import check_device, load_model, load_processor
    from ttreg_hf.modeling import register_with_auto_classes

    if device is not None:
        check_device(device)
    register_with_auto_classes()
    try:
        model = load_model(
            name,
            revision=revision,
            token=token,
            device=device,
            dtype=dtype.value if dtype else None,
            trust_remote_code=trust_remote_code,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        text, types = str(error).strip().split("\n\n")[0], ", ".join(supported_model_types())
        raise ValueError(
            (text if name in text else f"{name} cannot be loaded. {text}")
            + (
                ""
                if types in text or isinstance(error, FileNotFoundError)
                else f"\nMODEL is a Hub id or a local folder; supported model types are {types}."
            )
        ) from error
    return model, load_processor(name, revision=revision, token=token, trust_remote_code=trust_remote_code)


def open_processes(device: str | None) -> Any:
    """The `Accelerator` of the processes that a launcher started; `None` for one process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=timedelta(hours=1))  # for one that decodes slowly
    # without `cpu=True`, Accelerate takes each process on a machine without a GPU for one alone
    return Accelerator(cpu=device == "cpu" or not torch.cuda.is_available(), kwargs_handlers=[patience])


def open_images(
    dataset: str | None,
    *,
    split: str | None,
    image_column: str | None,
    token: str | None,
    model: str,
    num_images: int,
    seed: int | None = None,
) -> OpenedImages:
    """The images that are meant; an empty folder or a missing column is an error here, before a model is loaded."""
    from ttreg_hf.calibration import images as library
    from ttreg_hf.calibration.sources import find_images

    try:
        source = find_images(dataset, split=split, image_column=image_column, token=token, model=model, seed=seed)
    except OSError as error:
        if dataset is not None:
            raise
        raise OSError(f"{error}. It is recommended for {model}; `--dataset FOLDER` takes other images.") from error
    opened = library.open_images(source.images, image_column=source.image_column)
    holders = (opened, getattr(opened, "paths", None), getattr(opened, "dataset", None))
    counts = [min(len(holder), num_images) for holder in holders if isinstance(holder, Sized)]
    return OpenedImages(source.images, source.name, source.image_column, counts[0] if counts else None)


def read_calibration(directory: Path) -> "CalibrationResult":
    """What `ttreg calibrate` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that are not, or no longer, a calibration.
    """
    from safetensors import SafetensorError

    from ttreg_hf.calibration.result import CalibrationResult

    try:
        return CalibrationResult.load(directory)
    except (JSONDecodeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"The files in {directory} are not what `ttreg calibrate` writes ({type(error).__name__}: {error}). "
            "Calibrate again."
        ) from error


def settings_of(options: dict[str, Any], *, recipe_of: str | None = None) -> "CalibrationConfig":
    """Settings from options that were given; those left out are the published recipe's, if wanted, else automatic.

    Args:
        options: named as the fields of `CalibrationConfig`; `None` where left out.
        recipe_of: a known checkpoint.

    Raises:
        ValueError: no recipe for this checkpoint.
        typer.BadParameter: a value that no model allows.
    """
    from ttreg_hf.calibration.config import CalibrationConfig

    settings = {} if recipe_of is None else _recipe(recipe_of)
    settings |= {name: value for name, value in options.items() if value is not None}
    try:
        return CalibrationConfig(**settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _recipe(model: str) -> dict[str, Any]:
    known = known_checkpoint(model)
    if known is None:
        raise ValueError(
            f"No recipe is published for {model!r}. Recipes exist for {', '.join(known_checkpoints())}. "
            "Leave out `--recipe` to have the settings chosen automatically."
        )
    return dict(known.recipe.settings())
