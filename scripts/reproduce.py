#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.10"
# dependencies = ["ttreg_hf[evaluate]"]
# ///
"""Evidence on published checkpoints by one command, for whoever has the Hub: `uv run reproduce.py --output DIR`.

One row a checkpoint and size: inspect, calibrate, overlap with published neurons, what patching does, pictures, and,
with `--segmentation`, a dense task beside what people try by hand. What is done is kept in DIR, so a run goes
on where it ended; what fails is named, and the others go on. Cells that nobody has filled print "not run".
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel

from ttreg_hf import CalibrationConfig, CalibrationResult, add_test_time_registers, calibrate
from ttreg_hf.evaluation.evaluation_config import EvaluationConfig
from ttreg_hf.evaluation.evaluation_result import PRIMARY
from ttreg_hf.evaluation.evaluation_run import evaluate
from ttreg_hf.evaluation.rows import BASE, INTERPOLATED, MASKED, PATCHED
from ttreg_hf.evaluation.segmentation_probe import SegmentationProbe
from ttreg_hf.evaluation.whole_image import whole_image
from ttreg_hf.images.data_sets import find_images
from ttreg_hf.images.photographs import photographs_to_picture
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.loading import load_model, load_processor
from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.pictures.picture_files import write_before_after
from ttreg_hf.writing import write_file

NOT_RUN, FAILED, LEFT_OUT = "not run", "failed", "left out"
CALIBRATION, PICTURES, DENSE_FILE, ERROR_FILE = "calibration", "pictures", "dense_task.json", "error.txt"
ROWS = (BASE, PATCHED, INTERPOLATED, MASKED)  # of an evaluation; all are in the JSON
TABLE_FILE, ROWS_FILE = "reproduction.md", "reproduction.json"


@dataclass(frozen=True)
class Target:
    """A published checkpoint at one size.

    Args:
        model: Hub id.
        image_size: height and width in pixels; `None`: as the checkpoint's own processor makes it.
    """

    model: str
    image_size: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.model.replace("/", "--") + (f"-{self.image_size}" if self.image_size else "")


TARGETS = (
    Target("facebook/dinov2-large"),
    Target("facebook/dinov2-large", 518),
    Target("facebook/dinov2-giant"),
    Target("openai/clip-vit-base-patch16"),
    Target("google/siglip2-base-patch16-256"),
    Target("facebook/dinov2-with-registers-large"),  # the negative: trained with registers
)


@dataclass(frozen=True)
class Settings:
    """What every target is run with."""

    output: Path
    dataset: str | None
    segmentation: str | None
    num_images: int
    device: str | None
    token: str | None


class Run:
    """One target: each stage keeps what it made in the target's folder, and is not run again.

    Args:
        target: the checkpoint.
        settings: of all targets.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        self._target, self._settings = target, settings
        self.folder = settings.output / target.name

    @property
    def left(self) -> list[tuple[str, Callable[[PreTrainedModel, Any], None]]]:
        """Stages that were not finished, in order."""
        stages = [(CALIBRATION, self._calibrate), (PICTURES, self._draw)]
        stages += [(DENSE_FILE, self._evaluate)] if self._settings.segmentation else []
        return [(name, stage) for name, stage in stages if not (self.folder / name).exists()]

    def go_on(self) -> None:
        """Run what is left. An error is written down, and ends this target only."""
        if not self.left:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ERROR_FILE).unlink(missing_ok=True)
        at = "loading"
        try:
            model, processor = self._loaded()
            for name, stage in self.left:
                at = name
                stage(model, processor)
        except Exception as error:  # noqa: BLE001 - whatever a checkpoint does, the others are run
            text = f"{at}: {type(error).__name__}: {error}"
            write_file(self.folder / ERROR_FILE, text.encode())
            typer.echo(f"{self._target.model}: {FAILED} at {text}", err=True)

    def row(self) -> dict[str, Any]:
        """What is known so far; what is not, is missing."""
        row: dict[str, Any] = {"model": self._target.model, "image_size": self._target.image_size}
        if (self.folder / CALIBRATION).exists():
            row |= found_by(CalibrationResult.load(self.folder / CALIBRATION), self._target)
        if (self.folder / DENSE_FILE).exists():
            row |= json.loads((self.folder / DENSE_FILE).read_text(encoding="utf-8"))
        if (self.folder / ERROR_FILE).exists():
            row["error"] = (self.folder / ERROR_FILE).read_text(encoding="utf-8")
        return row

    def _loaded(self) -> tuple[PreTrainedModel, Any]:
        name, token = self._target.model, self._settings.token
        model = load_model(name, device=self._settings.device, token=token)
        processor = load_processor(name, token=token)
        if self._target.image_size:
            processor = whole_image(VisionTower.of(model), processor, self._target.image_size)
        return model, processor

    def _calibrate(self, model: PreTrainedModel, processor: Any) -> None:
        images = find_images(self._settings.dataset, model=self._target.model, token=self._settings.token, seed=0)
        config = CalibrationConfig(num_images=self._settings.num_images)
        calibrate(model, images, config=config, processor=processor).save(self.folder / CALIBRATION)

    def _draw(self, model: PreTrainedModel, processor: Any) -> None:
        result = CalibrationResult.load(self.folder / CALIBRATION)
        patched = add_test_time_registers(model, result) if result.moves_something else None
        write_before_after(
            model,
            patched,
            photographs_to_picture(),
            processor,
            self.folder / PICTURES,
            detection_layer=-1 if result.config.detection_layer is None else result.config.detection_layer,
            norm_threshold=result.config.norm_threshold,
        )

    def _evaluate(self, model: PreTrainedModel, processor: Any) -> None:
        result = CalibrationResult.load(self.folder / CALIBRATION)
        dense: dict[str, Any] = {"mIoU": {}, LEFT_OUT: {}}
        if result.moves_something:
            splits = [find_images(self._settings.segmentation, split=name, token=self._settings.token).images
                      for name in ("train", "test")]  # fmt: skip
            found = evaluate(
                model,
                splits[1],
                task=SegmentationProbe(),
                train=splits[0],
                config=EvaluationConfig(num_images=1000, num_training_images=2000, image_size=result.image_size[0]),
                register_neurons=result,
                processor=load_processor(self._target.model, token=self._settings.token),
            )
            primary = [figure for figure in found.figures if figure.endpoint == PRIMARY]
            dense = {"mIoU": {each.row: each.value for each in primary}, LEFT_OUT: found.left_out}
            dense["patched minus"] = {each.row: each.patched_minus for each in primary if each.patched_minus}
        write_file(self.folder / DENSE_FILE, json.dumps(dense, indent=2, default=dataclasses.asdict).encode())


def found_by(result: CalibrationResult, target: Target) -> dict[str, Any]:
    """What a calibration says of a checkpoint, and how much of what others published it found."""
    norms, known = result.norms, known_checkpoint(target.model)
    layer = norms.detection_layer
    row: dict[str, Any] = {
        "images": norms.num_images,
        "block": layer,
        "largest / median norm": norms.max[layer] / norms.median[layer],
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "neurons": len(result.register_neurons),
        "spikes": len(result.fixed_positions),
        "provenance": result.to_dict()["provenance"],
    }
    if known is not None and known.register_neurons is not None:
        published = set(known.register_neurons)
        ranked = rank_neurons(result.scores, first_layer=0, last_layer=len(result.scores) - 1, top_k=len(published))
        row["published"] = len(published)
        row["published found"] = len(published & {(each.layer, each.neuron) for each in result.register_neurons})
        row["published among as many best scores"] = len(published & {(each.layer, each.neuron) for each in ranked})
    if result.verification is not None:
        row["outliers after / before"] = result.verification.outlier_ratio
        row["drift"] = result.verification.drifts.moved.pooled
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = ["checkpoint", "px", "images", "block", "largest / median norm", "verdict", "neurons", "spikes",
             "published found", "outliers after / before", "drift", *(f"mIoU, {name}" for name in ROWS)]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = {**row, **{f"mIoU, {name}": value for name, value in row.get("mIoU", {}).items()}}
        cells |= {f"mIoU, {name}": LEFT_OUT for name in row.get(LEFT_OUT, {})}
        cells |= {"checkpoint": row["model"], "px": row["image_size"] or "own"}
        if "error" in row and "verdict" not in row:
            cells["verdict"] = f"{FAILED} ({row['error'].split(':')[0]})"
        if "published" in row:
            cells["published found"] = f"{row['published found']} of {row['published']}"
        elif "verdict" in row:
            cells["published found"] = "none published"
        lines.append(f"| {' | '.join(_cell(cells.get(head)) for head in heads)} |")
    lines += [
        "",
        "Norms: L2 over channels of the named block's raw output, before any final LayerNorm; blocks from 0.",
    ]
    lines += ["mIoU: of linear segmentation, the primary endpoint; interpolated, masked: by hand, without a register."]
    lines += [f"{row['model']}: {name}: {why}" for row in rows for name, why in row.get(LEFT_OUT, {}).items()]
    lines += [f"{row['model']}: {FAILED} at {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return NOT_RUN
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def reproduce(
    output: Annotated[Path, typer.Option(help="Folder of all results; a run goes on where they end.")],
    model: Annotated[list[str], typer.Option(help="Hub id of the list; may be given again. Default: all.")] = [],  # noqa: B006
    dataset: Annotated[str | None, typer.Option(help="Images; by default those recommended for the model.")] = None,
    segmentation: Annotated[
        str | None, typer.Option(help="Data set with masks, splits train and test: linear segmentation.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="To calibrate on.")] = 500,
    device: Annotated[str | None, typer.Option(help="A GPU by default, where there is one.")] = None,
    token: Annotated[str | None, typer.Option(help="For private or gated repositories.")] = None,
) -> None:
    """Inspect and calibrate published checkpoints, and compare with what others published. 1 if some failed."""
    settings = Settings(output, dataset, segmentation, num_images, device, token)
    known = {target.model for target in TARGETS}
    if unknown := sorted(set(model) - known):
        raise typer.BadParameter(f"it is one of {', '.join(sorted(known))}; got {', '.join(unknown)}.")
    runs = {target: Run(target, settings) for target in TARGETS}
    for target, run in runs.items():
        if not model or target.model in model:
            run.go_on()
            _write(output, [each.row() for each in runs.values()])
    rows = [run.row() for run in runs.values()]
    print(table(rows))
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    write_file(output / ROWS_FILE, (json.dumps(rows, indent=2) + "\n").encode())
    write_file(output / TABLE_FILE, table(rows).encode())


if __name__ == "__main__":
    typer.run(reproduce)
