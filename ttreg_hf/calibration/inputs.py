"""What a calibration runs on: the vision tower of a model, and this process's images as batches."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttreg_hf.calibration.config import CalibrationConfig, Constants, RunConfig
from ttreg_hf.calibration.run_state import StateStore, fingerprint
from ttreg_hf.calibration.search import checked_layers
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.data_sets import NamedImages
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.workers import decode_workers
from ttreg_hf.loading import model_and_processor
from ttreg_hf.measuring.batch_size import fit_batch_size
from ttreg_hf.measuring.photographs import PhotographOf, own_photograph
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is measured, and on what.

    Args:
        tower: of a private copy of the model.
        batches: this process's images.
        config: with 0-based layers; what is `None` is to be chosen.
        photograph_of: from an image's place to its photograph.
        constants: that automatic choices rest on.
    """

    tower: VisionTower
    batches: ImageBatches
    config: CalibrationConfig
    photograph_of: PhotographOf = own_photograph
    constants: Constants = dataclasses.field(default_factory=Constants)

    @classmethod
    def open(
        cls,
        model_or_id: PreTrainedModel | str | Path,
        images: NamedImages,
        config: CalibrationConfig,
        *,
        processor: Any = None,
        revision: str | None = None,
        accelerator: Any = None,
        run: RunConfig | None = None,
    ) -> "Inputs":
        """Load and check what is given; arguments as in `calibrate`.

        Raises:
            ValueError: an unsupported model or a wrong layer, before any image is read.
        """
        processes, run = Processes.of(accelerator), run or RunConfig()
        device = accelerator.device if accelerator else None
        model, processor = model_and_processor(model_or_id, processor, revision=revision, device=device)
        tower = VisionTower.to_measure(model)
        config = checked_layers(config, tower)
        device = tower.trunk.device
        batches = ImageBatches(
            open_images(images.images, image_column=images.image_column),
            processor,
            num_images=config.num_images,
            batch_size=config.batch_size or 1,
            device=device,
            processes=processes,
            workers=decode_workers(device, processes.world) if run.workers is None else run.workers,
            max_bad_share=run.max_bad_share,
            channels=tower.num_channels,
        )
        batches.check_same_images()
        if config.batch_size is None:
            batches = batches.of_size(_fitting_batch_size(tower, batches))
        return cls(tower, batches, config, images.photograph_of)

    def state_store(self, run: RunConfig, source: DataSource) -> StateStore | None:
        """Where a long run saves its states; `None` if it saves none."""
        config, batches, model = self.config, self.batches, self.tower.model
        if run.state_directory is None or not (run.resume or config.num_images > run.save_every):
            return None
        weights = [f"{float(parameter.detach().float().abs().mean()):.5e}" for parameter in model.parameters()]
        first = next(batches.on_every_process().without_workers().first(1), None)
        run_is = {
            **dataclasses.asdict(dataclasses.replace(config, batch_size=None)),
            "model": fingerprint([type(model).__name__, str(model.dtype), str(model.config.to_dict()), weights]),
            "images": fingerprint([str(source), f"{float(first.pixel_values.mean()):.4e}" if first else None]),
        }
        return StateStore(
            Path(run.state_directory),
            save_every=run.save_every,
            resume=run.resume,
            run=run_is,
            processes=batches.processes,
        )


def _fitting_batch_size(tower: VisionTower, batches: ImageBatches) -> int:
    one_image = next(batches.on_every_process().without_workers().first(1), None)
    if one_image is None:
        return 1
    with Recorder(tower, range(tower.num_layers)) as recorder:
        return fit_batch_size(recorder, one_image.pixel_values)
