"""From options to what the library takes: a model with its processor, images, settings. Imports torch when called."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ttreg_hf.cli.options import ImageOptions, ModelOptions
from ttreg_hf.cli.printer import Printer, say_working
from ttreg_hf.known.checkpoints import known_checkpoint, known_checkpoints

if TYPE_CHECKING:
    from ttreg_hf.calibration.calibration_result import CalibrationResult
    from ttreg_hf.calibration.config import CalibrationConfig
    from ttreg_hf.images.data_sets import NamedImages
    from ttreg_hf.loading import ModelSource


@dataclass(frozen=True)
class OpenedImages:
    """Images, and how many will be used, where that is known before they are read."""

    named: "NamedImages"
    available: int | None

    def describe(self, printer: Printer, num_images: int, *, where: str = "") -> None:
        """The line that says which images are used."""
        count = f"the first {num_images}" if self.available is None else str(self.available)
        beside = f"; {self.named.note}" if self.named.note else ""
        printer.note(f"{where}images: {self.named.source} ({count}){beside}")


def model_source(name: str, options: ModelOptions, *, device: str | None = None) -> "ModelSource":
    """The checkpoint that is meant; says that it is loaded, which takes a while.

    Args:
        name: MODEL.
        options: how it is loaded.
        device: of a process that a launcher started, over that of the options.

    Raises:
        ValueError: a device that is not there.
    """
    say_working(f"loading {name} ...")
    from ttreg_hf.loading import ModelSource, check_device

    if options.device is not None:
        check_device(options.device)
    return ModelSource(
        name,
        revision=options.revision,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        device=device or options.device,
        dtype=options.dtype.value if options.dtype else None,
        tower=options.tower,
    )


def open_model(source: "ModelSource") -> tuple[Any, Any]:
    """A model on its device, and its image processor.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or a model that cannot be patched.
    """
    return source.model(), source.processor()


def open_images(
    options: ImageOptions, *, token: str | None, model: str, num_images: int, seed: int | None = None
) -> OpenedImages:
    """The images that are meant; an empty folder or a missing column is an error here, before a model is loaded."""
    say_working("opening the images ...")
    from ttreg_hf.images.data_sets import find_images

    named = find_images(
        options.dataset,
        config=options.config,
        split=options.split,
        image_column=options.image_column,
        token=token,
        model=model,
        seed=seed,
    )
    return OpenedImages(named, named.available(num_images))


def read_calibration(directory: Path) -> "CalibrationResult":
    """What `ttreg calibrate` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that are not, or no longer, a calibration.
    """
    from ttreg_hf.calibration.calibration_result import CalibrationResult

    return CalibrationResult.load(directory)


def calibration_of(loaded: Any, source: "ModelSource") -> "CalibrationResult | None":
    """The calibration beside a patched checkpoint, in its folder or on the Hub.

    Raises:
        FileNotFoundError, ValueError: files that are not, or no longer, a calibration.
    """
    from ttreg_hf.calibration.calibration_beside import calibration_beside

    return calibration_beside(loaded, source.name_or_path, revision=source.revision, token=source.token)


def settings_of(*groups: Any, recipe_of: str | None = None, **options: Any) -> "CalibrationConfig":
    """Settings from options that were given; those left out are the published recipe's, if wanted, else automatic.

    Args:
        groups: dataclasses of options, whose fields are named as those of `CalibrationConfig`.
        recipe_of: a known checkpoint.
        options: single ones, named likewise; `None` where left out.

    Raises:
        ValueError: no recipe for this checkpoint.
        typer.BadParameter: a value that no model allows.
    """
    from ttreg_hf.calibration.config import CalibrationConfig

    given = {name: value for group in groups for name, value in dataclasses.asdict(group).items()} | options
    settings = {} if recipe_of is None else _recipe(recipe_of)
    settings |= {name: value for name, value in given.items() if value is not None and value is not False}
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
