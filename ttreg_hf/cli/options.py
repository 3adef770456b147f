"""Options that several verbs share, each declared once; a verb takes those that belong together as one dataclass."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

# What matters first has no panel of its own; the rest is in these, below.
_MODEL, _IMAGES, _SEARCH = "Model", "Data set", "Settings (left out: chosen automatically)"
_RUN = "Run (does not change what is found)"


class Dtype(str, Enum):
    """Number formats that a model can be run in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write.", show_default=False)]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="Folder that `ttreg calibrate` wrote.")
]

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", rich_help_panel=_MODEL)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code of the repository.", rich_help_panel=_MODEL)
]
Token = Annotated[str | None, typer.Option(help="Hub token for private or gated repos.", rich_help_panel=_MODEL)]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: the first GPU, else the CPU.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Number format. Default: the checkpoint's.", rich_help_panel=_MODEL)
]
Tower = Annotated[
    str | None,
    typer.Option(
        help="Path of the vision tower, such as model.vision_tower, where there are several.", rich_help_panel=_MODEL
    ),
]

Dataset = Annotated[
    str | None,
    typer.Option(
        help="Folder or files (images, parquet, tar, zip), or Hub id. Default: MODEL's recipe's, or photographs.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="NAME", help="Configuration of the data set, if it has several.", rich_help_panel=_IMAGES
    ),
]
Split = Annotated[str | None, typer.Option(help="Part of the data set, such as train.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="Column with the images, if there are several.", rich_help_panel=_IMAGES)
]
NumImages = Annotated[int | None, typer.Option(min=1, help="How many images at most. Default: 500; verify: 48.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images in a forward pass. Default: as many as fit.")]

NormThreshold = Annotated[
    float | None,
    typer.Option(
        help="Norm above which a patch is an outlier token, at the detection block.", rich_help_panel=_SEARCH
    ),
]
DetectionLayer = Annotated[
    int | None, typer.Option(help="Block where outliers are detected; -1 is the last.", rich_help_panel=_SEARCH)
]
FirstLayer = Annotated[int | None, typer.Option(help="First block searched.", rich_help_panel=_SEARCH)]
LastLayer = Annotated[int | None, typer.Option(help="Last block searched, inclusive.", rich_help_panel=_SEARCH)]
TopK = Annotated[int | None, typer.Option(min=1, help="How many neurons.", rich_help_panel=_SEARCH)]
MaxActiveFraction = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="Skip neurons active on more than this share of tokens.", rich_help_panel=_SEARCH
    ),
]
DetectOnPrefix = Annotated[
    bool, typer.Option("--detect-on-prefix", help="Let CLS count as an outlier token.", rich_help_panel=_SEARCH)
]
Rounds = Annotated[
    int | None,
    typer.Option(
        help="How often to look, where outliers are left after the neurons found first.", rich_help_panel=_SEARCH
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Forward passes of single images that choosing neurons may cost in one round.", rich_help_panel=_SEARCH
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Shuffles the images (a stream: its files), and splits them. Default: in order.", rich_help_panel=_SEARCH
    ),
]
Recipe = Annotated[bool, typer.Option("--recipe", help="Use the published settings of a known MODEL.")]

Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Decoding processes, for each process. Default: by cores.", rich_help_panel=_RUN),
]
MaxBadImages = Annotated[
    float,
    typer.Option(
        min=0.0, max=1.0, help="Share of unreadable images to skip before stopping.", rich_help_panel=_IMAGES
    ),
]
SaveEvery = Annotated[
    int, typer.Option(min=1, help="Images between two saved states, beside the output.", rich_help_panel=_RUN)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last state of a killed run.")]
EarlyStop = Annotated[
    bool,
    typer.Option(
        "--early-stop", help="Stop when two halves of the images agree on the neurons.", rich_help_panel=_RUN
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """How MODEL is loaded."""

    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    token: Token = None
    device: Device = None
    dtype: DtypeOption = None
    tower: Tower = None


@dataclass(frozen=True)
class ImageOptions:
    """Which images."""

    dataset: Dataset = None
    config: Config = None
    split: Split = None
    image_column: ImageColumn = None
    num_images: NumImages = None
    max_bad_images: MaxBadImages = 0.01


@dataclass(frozen=True)
class DetectionOptions:
    """How outliers are detected; named as fields of `CalibrationConfig`."""

    batch_size: BatchSize = None
    norm_threshold: NormThreshold = None
    detection_layer: DetectionLayer = None


@dataclass(frozen=True)
class SearchOptions:
    """How register neurons are searched; named as fields of `CalibrationConfig`."""

    first_layer: FirstLayer = None
    last_layer: LastLayer = None
    top_k: TopK = None
    max_active_fraction: MaxActiveFraction = None
    detect_on_prefix: DetectOnPrefix = False
    rounds: Rounds = None
    budget: Budget = None


@dataclass(frozen=True)
class RunOptions:
    """How a run goes; does not change what is found, but `early_stop`."""

    workers: Workers = None
    save_every: SaveEvery = 10_000
    resume: Resume = False
    early_stop: EarlyStop = False
