"""Compares what this project finds on a known checkpoint with what others published about it.

It has not been run on real weights yet, only on planted models: it is for whoever has the Hub, and its bounds are
guesses until then. The published figures and their bounds are data, in `hub_configs/`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.published_figures import FAIL, GATE_SOURCE, PASS, Row, as_text, gate_rows, judge, status_of
from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate, inspect_norms
from ttreg_hf.calibration.comparison import Comparison, compare
from ttreg_hf.calibration.config import CalibrationConfig, GateConfig
from ttreg_hf.calibration.verdict import FIXED
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages, find_images
from ttreg_hf.images.image_source import open_images
from ttreg_hf.known.checkpoints import known_checkpoint, known_checkpoints
from ttreg_hf.known.known_checkpoint import KnownCheckpoint
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.measuring.measurement import measure
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.pictures.figures import save_figure
from ttreg_hf.pictures.norm_plots import plot_norms_per_block
from ttreg_hf.writing import check_output, whole_directory

JSON_FILE, PICTURE_FILE = "reproduction.json", "norms_per_block.png"
_IMAGES_TO_VERIFY = 64


@dataclass(frozen=True, eq=False)
class Reproduction:
    """A run on a known checkpoint.

    Args:
        known: the checkpoint and what is known of it.
        result: of the calibration with the published recipe.
        norms_after: patch norms after patching with our neurons; `None` if none were found.
        published: base against patched with the published neurons and options; `None` if none are published.
        ours: base against patched with our neurons, on the same images; `None` if none were found.
        rows: the table.
    """

    known: KnownCheckpoint
    result: CalibrationResult
    norms_after: NormReport | None
    published: Comparison | None
    ours: Comparison | None
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether no row failed."""
        return all(row.status == PASS for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "model": self.known.base_model,
            "passed": self.passed,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "published": dataclasses.asdict(self.published) if self.published else None,
            "ours": dataclasses.asdict(self.ours) if self.ours else None,
            "calibration": self.result.to_dict(),
        }


def reproduce(
    model: PreTrainedModel,
    known: KnownCheckpoint,
    images: Any,
    *,
    processor: Any = None,
    gate: GateConfig | None = None,
    **settings: Any,
) -> Reproduction:
    """Calibrate with the published recipe, and compare with what was published.

    Args:
        model: the base model.
        known: what is known of it.
        images: as `calibrate` takes them.
        processor: image processor; not needed for float tensors.
        gate: bounds of drift and of the outliers that stay.
        settings: fields of `CalibrationConfig` over the recipe's, such as `num_images`.

    Raises:
        ValueError: as `calibrate`.
    """
    gate = gate or GateConfig()
    named = NamedImages.of(images)
    opened = open_images(named.images, image_column=named.image_column)
    config = CalibrationConfig(**{**known.recipe.settings(), **settings})
    result = calibrate(model, NamedImages(opened, named.source), config=config, processor=processor, gate=gate)

    few = dataclasses.replace(result.config, num_images=min(config.num_images, _IMAGES_TO_VERIFY))
    verify = _verifier(model, opened, processor, few)
    published = ours = norms_after = None
    if known.register_neurons is not None:
        options: dict[str, Any] = known.options.settings()
        published = verify(add_test_time_registers(model, known.register_neurons, **options))
    if result.register_neurons:
        patched = add_test_time_registers(model, result.register_neurons, shift_value=result.shift_value)
        ours = verify(patched)
        norms_after = inspect_norms(patched, opened, config=few, processor=processor)
    rows = [
        *(judge(expectation, known, result) for expectation in known.expectations),
        *(gate_rows("the published neurons", published, gate, known.source) if known.register_neurons else ()),
        *gate_rows("our neurons", ours, gate, GATE_SOURCE),
        Row("verdict", result.verdict, FIXED, status_of(result.verdict == FIXED), GATE_SOURCE),
    ]
    return Reproduction(known, result, norms_after, published, ours, tuple(rows))


def save_reproduction(reproduction: Reproduction, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write the table, the calibration and the picture of the norms to a folder, all or nothing.

    Raises:
        FileExistsError, PermissionError: from `whole_directory`.
    """
    with whole_directory(directory, overwrite=overwrite) as folder:
        text = json.dumps(reproduction.to_dict(), indent=2) + "\n"
        (folder / JSON_FILE).write_text(text, encoding="utf-8")
        reproduction.result.save(folder)
        norms, after = reproduction.result.norms, reproduction.norms_after
        figure = plot_norms_per_block(
            norms.median,
            norms.max,
            after=(after.median, after.max) if after else None,
            norm_threshold=norms.norm_threshold,
            detection_layer=norms.detection_layer,
            title=f"Patch norms of {reproduction.known.base_model}",
            caption=f"Before: {norms.num_images} images, {reproduction.result.provenance.source}."
            + (f" After: {after.num_images} of them, patched with our neurons." if after else ""),
        )
        save_figure(figure, folder / PICTURE_FILE)


def format_table(reproduction: Reproduction) -> str:
    """The rows as text, with the source below each."""
    lines = [f"{reproduction.known.base_model}, {reproduction.result.norms.num_images} images"]
    for row in reproduction.rows:
        lines.append(f"{row.status}  {row.quantity}: {as_text(row.measured)} (expected {row.expected})")
        lines.append(f"      {row.source}")
    failed = sum(row.status == FAIL for row in reproduction.rows)
    lines.append(f"{len(reproduction.rows) - failed} PASS, {failed} FAIL")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """`scripts/check_published.py`: 0 if all rows pass, 1 if some fail or the run does, 2 for wrong usage."""
    given = _parser().parse_args(arguments)
    try:
        if given.output:
            check_output(given.output, overwrite=given.overwrite)
        reproduction = _run(given)
        if given.output:
            save_reproduction(reproduction, given.output, overwrite=given.overwrite)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(reproduction.to_dict(), indent=2) if given.json else format_table(reproduction))
    return 0 if reproduction.passed else 1


def _run(given: argparse.Namespace) -> Reproduction:
    known = known_checkpoint(given.model)
    if known is None:
        raise ValueError(
            f"MODEL is a checkpoint with published figures, got {given.model!r}. Known are "
            f"{', '.join(known_checkpoints())}."
        )
    hub = {"revision": given.revision, "token": given.token}
    images = find_images(
        given.dataset, split=given.split, image_column=given.image_column, token=given.token, model=given.model
    )
    over = {"num_images": given.num_images, "batch_size": given.batch_size}
    return reproduce(
        load_model(given.model, device=given.device, dtype=given.dtype, **hub),
        known,
        images,
        processor=load_processor(given.model, **hub),
        **{name: value for name, value in over.items() if value is not None},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_published.py",
        description="Calibrates a known checkpoint with its published recipe and compares the findings with the "
        "published figures, PASS or FAIL. Not run on real weights yet, only on planted models: a FAIL may mean that "
        "a bound in hub_configs/ is wrong.",
    )
    parser.add_argument("model", metavar="MODEL", help="Hub id of a checkpoint in hub_configs/")
    parser.add_argument("--dataset", help="folder, image file or Hub id; the recipe's data set by default")
    parser.add_argument("--split", help="split of a data set on the Hub")
    parser.add_argument("--image-column", help="column of a data set with several")
    parser.add_argument("--num-images", type=int, help="how many images; the recipe's number by default")
    parser.add_argument("--batch-size", type=int, help="images in one forward pass")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--token", help="for private or gated repositories")
    parser.add_argument("--device", help="the first GPU or the CPU by default")
    parser.add_argument("--dtype", help="the checkpoint's by default")
    parser.add_argument("--output", metavar="DIR", help=f"writes {JSON_FILE}, the calibration and {PICTURE_FILE}")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser


def _verifier(
    model: PreTrainedModel, images: Any, processor: Any, config: CalibrationConfig
) -> Callable[[PreTrainedModel], Comparison]:
    """Compares patched twins with the model, on the first images."""
    detection_layer, norm_threshold = config.detection_layer, config.norm_threshold
    if detection_layer is None or norm_threshold is None:
        raise ValueError("Verifying needs the settings that a calibration has resolved, got `None`.")
    rule = OutlierRule(detection_layer, norm_threshold)
    batches = ImageBatches(
        images, processor, num_images=config.num_images, batch_size=config.batch_size or 16, device=model.device
    )
    before = measure(VisionTower.to_measure(model), batches, rule)

    def verify(patched: PreTrainedModel) -> Comparison:
        return compare(before, measure(VisionTower.to_measure(patched), batches, rule))

    return verify
