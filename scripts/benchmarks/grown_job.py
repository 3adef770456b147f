"""One model to grow and to judge: where it comes from, and where all that is known of it is kept."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

from benchmarks.grown_variants import VARIANTS, Variant


@dataclass(frozen=True)
class Job:
    """One model to grow and to judge.

    Args:
        base: folder of the model before growing.
        photographs: folder with its splits.
        composites: folder with `train.parquet` and `test.parquet`; `None`: no dense tasks.
        output: folder of this model.
        name: of its variant.
        seed: of growing and calibrating.
        steps: of the optimiser.
        num_images: to calibrate on.
        device: to run on.
    """

    base: Path
    photographs: Path
    composites: Path | None
    output: Path
    name: str
    seed: int
    steps: int
    num_images: int
    device: str

    @property
    def variant(self) -> Variant:
        """How it is grown."""
        return VARIANTS[self.name]

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return f"{self.name}, {self.seed}"

    def load(self, folder: Path) -> PreTrainedModel:
        """A checkpoint to measure, on the device."""
        return AutoModel.from_pretrained(folder, dtype=torch.float32).to(self.device).eval()

    def say(self, line: str) -> None:
        """A line for people."""
        print(f"{self.name}, seed {self.seed}: {line}", flush=True)
