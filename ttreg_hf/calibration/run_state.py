"""The state of a long run on disk, so that a killed one goes on, also with another number of processes.

Each process writes its own sums when it has seen its images before a common place. A state counts once all processes
of its run have written it. Sums add up, so the first process of a resumed run takes them all.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from ttreg_hf.images.batches import BadImage
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.same_images import StreamDigest, check_same_streams
from ttreg_hf.measuring.neuron_scores import ScoreStatistics
from ttreg_hf.writing import write_file

_NAME = re.compile(r"place-(\d+)-run-(\w+)-rank-\d+-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class RunState:
    """What one process knows at a place.

    Args:
        place: all its images before this place of the global order have been scored.
        statistics: their sums.
        snapshots: sums before places 16, 32, ...
        bad_images: the unreadable ones, by place.
        stream: what the images were that were read, if they come as a stream.
    """

    place: int
    statistics: ScoreStatistics
    snapshots: Mapping[int, ScoreStatistics]
    bad_images: Mapping[int, BadImage]
    stream: StreamDigest = field(default_factory=StreamDigest)


class StateStore:
    """Saves and loads the states of one run.

    Args:
        directory: one for each run.
        save_every: images, over all processes, between two states.
        resume: whether `load` reads anything.
        run: what must be the same for a run to be continued, by name.
        processes: those of this run.
    """

    def __init__(
        self, directory: Path, *, save_every: int, resume: bool, run: Mapping[str, Any], processes: Processes
    ) -> None:
        self.directory, self.save_every, self.resume, self.processes = directory, save_every, resume, processes
        self.run = {name: str(value) for name, value in run.items()}
        self.run_name = fingerprint(self.run)

    def places(self, num_images: int) -> range:
        """Where states are saved."""
        return range(self.save_every, num_images, self.save_every)

    def save(self, state: RunState) -> None:
        """Write this process's state under a temporary name, rename it, and drop those that no resumed run would read.

        Those of places that some process has not reached yet stay: one may be far ahead of the others.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {"statistics": state.statistics.to_tensor().cpu()}
        tensors |= {f"snapshot-{count}": found.to_tensor().cpu() for count, found in state.snapshots.items()}
        name = self._name(f"{state.place:012d}")
        bad_images = {place: [bad.key, bad.reason] for place, bad in state.bad_images.items()}
        told = {"run": self.run, "bad_images": bad_images, "stream": asdict(state.stream)}
        metadata = {key: json.dumps(value) for key, value in told.items()}
        write_file(self.directory / name, save(tensors, metadata=metadata))
        mine = sorted(self.directory.glob(self._name("*")))
        complete = {file for files in self._complete(self.run_name) for file in files}
        last = max((at for at, file in enumerate(mine) if file in complete), default=0)
        for old in mine[:last]:
            old.unlink()

    def load(self, empty: ScoreStatistics) -> RunState | None:
        """The last complete state, if the run is a resumed one and there is one.

        Args:
            empty: statistics of the right shape and device, without images.

        Raises:
            ValueError: a state of another model, other images or other settings, or of processes that saw different
                images.
        """
        files = self._last_complete() if self.resume else []
        if not files:
            return None
        place = int(files[0].name.split("-")[1])
        states = [self._read(file, place, empty) for file in files]
        check_same_streams([state.stream for state in states])
        stream = max((state.stream for state in states), key=lambda stream: stream.place)
        if self.processes.rank > 0:  # the first process has them all
            return RunState(place, empty.copy(), {count: empty.copy() for count in states[0].snapshots}, {}, stream)
        total = states[0]
        for state in states[1:]:
            total.statistics.merge(state.statistics)
            for count, found in state.snapshots.items():
                total.snapshots[count].merge(found)
        bad_images = {place: bad for state in states for place, bad in state.bad_images.items()}
        return RunState(place, total.statistics, total.snapshots, bad_images, stream)

    def _name(self, place: str) -> str:
        """The file of this process at a place, or its pattern for `*`."""
        rank, world = self.processes.rank, self.processes.world
        return f"place-{place}-run-{self.run_name}-rank-{rank}-of-{world}.safetensors"

    def _complete(self, run: str) -> list[list[Path]]:
        """The files of each place that all processes of a run, or of any for `*`, have reached, in order."""
        groups: dict[tuple[int, int, str], list[Path]] = {}
        for file in sorted(self.directory.glob(f"place-*-run-{run}-*.safetensors")):
            if match := _NAME.fullmatch(file.name):
                groups.setdefault((int(match[1]), int(match[3]), match[2]), []).append(file)
        return [files for (_, world, _), files in sorted(groups.items()) if len(files) == world]

    def _last_complete(self) -> list[Path]:
        """The files of the last place that all processes of such a run have reached; none if there is no state."""
        if mine := self._complete(self.run_name):
            return mine[-1]
        if others := self._complete("*"):
            differences = ", ".join(self._differences(others[-1][0]))
            raise ValueError(
                f"`resume` continues a run of the same model, images and settings, but {self.directory} holds one "
                f"that differs in {differences}. Give it the same ones, or remove that folder."
            )
        return []

    def _differences(self, file: Path) -> list[str]:
        with safe_open(file, framework="pt") as opened:
            run = json.loads(opened.metadata()["run"])
        return sorted(name for name in {*run, *self.run} if run.get(name) != self.run.get(name))

    def _read(self, file: Path, place: int, empty: ScoreStatistics) -> RunState:
        device = empty.to_tensor().device
        with safe_open(file, framework="pt") as opened:
            bad_images, stream = (json.loads(opened.metadata()[name]) for name in ("bad_images", "stream"))
            names: list[str] = list(opened.keys())
            found = {name: empty.from_tensor(opened.get_tensor(name).to(device)) for name in names}
        statistics = found.pop("statistics")
        snapshots = {int(name.removeprefix("snapshot-")): value for name, value in found.items()}
        bad = {int(place): BadImage(*fields) for place, fields in bad_images.items()}
        return RunState(place, statistics, dict(sorted(snapshots.items())), bad, StreamDigest.of_dict(stream))


def remove_states(directory: Path) -> None:
    """Delete the states of a run, finished or not, when its result is where it belongs."""
    for file in (*directory.glob("place-*.safetensors"), *directory.glob(".place-*")):
        file.unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def fingerprint(values: Any) -> str:
    """A short name for some JSON-like values, the same on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
