"""What the processes of a launch do: `torchrun -m calibration.launched TASKS.json`. Started by `test_processes.py`.

Each task writes what it found to its folder, from the first process; a task that is to go wrong ends all of them.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator
from brief import calibrate_briefly
from datasets.distributed import split_dataset_by_node
from gallery import Gallery, named

from ttreg_hf.calibration.config import RunConfig
from ttreg_hf.calibration.run_state import StateStore
from ttreg_hf.cli import main
from ttreg_hf.images import decoding
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.image_source import open_images
from ttreg_hf.images.processes import Processes
from ttreg_hf.loading import load_model, load_processor


class Broken(Exception):
    """Stands for whatever ends a run."""


def run_tasks(path: Path) -> None:
    described = json.loads(path.read_text())
    gallery = Gallery(Path(described["root"]), Path(described["model"]), described["norm_threshold"])
    for task in described["tasks"]:
        _TASKS[task.pop("do")](gallery, **task)


def _calibrate(
    gallery: Gallery,
    *,
    output: str,
    kind: str = "folder",
    images: str | None = None,
    config: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    break_at: int | None = None,
) -> None:
    """A calibration; with `break_at` one that ends on all processes when the state of that place has been saved."""
    accelerator = Accelerator(cpu=True)
    run = dict(run or {})
    if "state_directory" in run:
        run["state_directory"] = Path(run["state_directory"])
    save = StateStore.save
    if break_at is not None:
        StateStore.save = _breaking(break_at)
    said: list[str] = []
    try:
        result = calibrate_briefly(
            load_model(str(gallery.model)),
            named(images or gallery.images(kind)),
            config=gallery.config(**config or {}),
            processor=load_processor(str(gallery.model)),
            accelerator=accelerator,
            run=RunConfig(**run),
            say=said.append,
        )
    except Broken:
        accelerator.wait_for_everyone()
        return
    finally:
        StateStore.save = save
    if accelerator.is_main_process:
        result.save(output)
        (Path(output) / "said.json").write_text(json.dumps(said))


def _tell_places(gallery: Gallery, *, output: str, kind: str, batch_size: int, workers: int) -> None:
    """Each process writes which places of the order it got."""
    accelerator = Accelerator(cpu=True)
    batches = ImageBatches(
        open_images(gallery.images(kind)),
        load_processor(str(gallery.model)),
        num_images=20,
        batch_size=batch_size,
        device=accelerator.device,
        processes=Processes.of(accelerator),
        workers=workers,
    )
    places = [place for batch in batches for place in batch.places]
    Path(f"{output}-{accelerator.process_index}.json").write_text(json.dumps([accelerator.num_processes, places]))
    accelerator.wait_for_everyone()


def _refused_images(gallery: Gallery, *, output: str, kind: str, how: str) -> None:
    """Each process sees other images; both write what they are told."""
    accelerator = Accelerator(cpu=True)
    images, rank = gallery.images(kind), accelerator.process_index
    if how == "split already":
        images = split_dataset_by_node(images, rank, accelerator.num_processes)
    if how == "shuffled without a seed":
        images = images.shuffle(seed=rank)
    if how == "late":
        images = _late_exchange(images, rank)
    run = RunConfig(state_directory=Path(output + ".state"), save_every=6)
    try:
        calibrate_briefly(
            load_model(str(gallery.model)),
            named(images),
            config=gallery.config(),
            processor=load_processor(str(gallery.model)),
            accelerator=accelerator,
            run=run,
        )
        told = "nothing"
    except ValueError as error:
        told = str(error)
    Path(f"{output}-{rank}.json").write_text(json.dumps(told))
    accelerator.wait_for_everyone()


def _late_exchange(images: Any, rank: int) -> Any:
    """The same for all, but the last two of the first 20 images on the second process."""
    rows = list(images)
    if rank == 1:
        rows[18], rows[19] = rows[19], rows[18]
    return datasets.IterableDataset.from_generator(lambda: iter(rows), features=images.features)


def _command(gallery: Gallery, *, arguments: list[str], code: int = 0) -> None:
    """`ttreg`."""
    ended = main(arguments)
    if ended != code:
        sys.exit(ended)


def _fail_on_rank_1(gallery: Gallery) -> None:
    """From now on the second process cannot decode."""
    if os.environ["RANK"] == "1":

        def fail(*args: Any, **options: Any) -> Any:
            raise RuntimeError("this process is out of order")

        decoding.to_pixel_values = fail


def _kill_rank_1(gallery: Gallery, *, at: int) -> None:
    """From now on the second process is killed when all have saved their state of this place."""
    save = StateStore.save

    def save_and_die(self: StateStore, state: Any) -> None:
        save(self, state)
        if state.place == at and self.processes.rank == 1:
            while len(list(self.directory.glob(f"place-{at:012d}-*.safetensors"))) < self.processes.world:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    StateStore.save = save_and_die


def _breaking(place: int) -> Any:
    save = StateStore.save

    def save_and_break(store: StateStore, state: Any) -> None:
        save(store, state)
        if state.place == place:
            raise Broken

    return save_and_break


_TASKS = {
    "calibrate": _calibrate,
    "tell places": _tell_places,
    "refused images": _refused_images,
    "command": _command,
    "fail on rank 1": _fail_on_rank_1,
    "kill rank 1": _kill_rank_1,
}

if __name__ == "__main__":
    run_tasks(Path(sys.argv[1]))
