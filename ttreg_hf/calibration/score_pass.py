"""Second stage: the paper's score of every neuron, in one forward pass an image.

Letters: `L` blocks, `B` images, `T` tokens, `F` neurons.
"""

import bisect
import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.convergence import Convergence, convergence, is_stable, milestones
from ttreg_hf.calibration.run_state import RunState, StateStore
from ttreg_hf.calibration.search import Search
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.progress import Progress, Say
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.neuron_scores import ScoreStatistics
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

_COMPARED_NEURONS = 50  # for convergence, where `top_k` is left open


class ScorePass:
    """One forward pass an image, up to the last block that is needed; all sums stay on the device.

    Args:
        tower: of the base model, or of a patched twin.
        search: where to look.
        config: `max_active_fraction` and `top_k` are used.
        processes: those that share the images.
        say: takes a line for people.
        limit: how many images go through the model at once.
    """

    def __init__(
        self,
        tower: VisionTower,
        search: Search,
        config: CalibrationConfig,
        processes: Processes,
        say: Say,
        limit: BatchLimit | None = None,
    ) -> None:
        self.tower, self.search, self.config, self.processes = tower, search, config, processes
        self.limit, self.say = limit or BatchLimit(say), say
        self.layout = tower.layout
        self.statistics = self._none()  # of the images before the last cut
        self._cuts: list[int] = []  # places; a part of the sums is of the images before the next cut, or the end
        self._parts: dict[int | None, ScoreStatistics] = collections.defaultdict(self._none)
        self.stopped_at: int | None = None  # a place, if an early stop came

    def run(
        self, batches: ImageBatches, progress: Progress, *, store: StateStore | None, early_stop: bool
    ) -> dict[int, ScoreStatistics]:
        """Statistics by number of images scored: before places 16, 32, ..., and of all, over all processes.

        Args:
            batches: this process's images.
            progress: shows how far it is.
            store: where states are saved, and read from if the run is a resumed one.
            early_stop: stop once the best neurons are stable.
        """
        marks = milestones(batches.num_images)
        snapshots: dict[int, ScoreStatistics] = {}
        start = 0
        if store is not None and (state := store.load(self.statistics)) is not None:
            start, self.statistics, snapshots = state.place, state.statistics, dict(state.snapshots)
            batches.bad_images.update(state.bad_images)
            batches.resume_stream(state.stream)
            self.say(f"resumed after {start} images")
        elif store is not None and store.resume:
            self.say(f"nothing to resume in {store.directory}: beginning with the first image")
        saves = store.places(batches.num_images) if store is not None else ()
        self._cuts = [cut for cut in sorted({*marks, *saves}) if cut > start]
        with self.recorder() as recorder:
            shown = batches.since(start).with_status(self._status)
            for cut in self._cuts_passed(recorder, progress("score", shown, batches.num_images)):
                if cut in marks:
                    snapshots[cut] = self.statistics.copy()
                    if early_stop and self._is_stable(snapshots):
                        self.stopped_at = cut
                        break
                if store is not None and cut in saves:
                    stream = batches.record.stream
                    store.save(RunState(cut, self.statistics, snapshots, batches.bad_images, stream))
        if self.stopped_at is None:
            self.statistics = self._so_far()
        return self._merged(snapshots)

    def recorder(self) -> Recorder:
        """What one forward pass has to record."""
        search = self.search
        return Recorder(
            self.tower,
            range(search.first_layer, search.last_layer + 1),
            norm_layers=[search.detection_layer],
            stop_after=max(search.detection_layer, search.last_layer),
        )

    def score(self, recorder: Recorder, batch: Batch) -> None:
        """Take in a batch, which may hold images from both sides of a cut."""
        for places, recording in self.limit.record(recorder, batch):
            outliers_BT = self.search.rule.outliers(recording, self.layout, 0)
            for cut, images in _split(places, self._cuts):
                acts_by_layer = recording.of(images).acts_by_layer
                found = (acts_by_layer, outliers_BT[images], places[images])
                self._parts[cut].add(*found, self.config.max_active_fraction)

    def _cuts_passed(self, recorder: Recorder, batches: Iterable[Batch]) -> Iterator[int]:
        """Score the batches; a cut comes once all of this process's images before it are in `statistics`."""
        left = collections.deque(self._cuts)
        for batch in batches:
            self.score(recorder, batch)
            while left and batch.seen_before is not None and batch.seen_before >= left[0]:
                yield self._passed(left.popleft())
        for cut in left:  # of a short stream too, so that all processes meet at the same ones
            yield self._passed(cut)

    def _passed(self, cut: int) -> int:
        self.statistics.merge(self._parts[cut])
        del self._parts[cut]
        return cut

    def _none(self) -> ScoreStatistics:
        return ScoreStatistics(self.tower.num_layers, max(self.tower.widths), self.tower.trunk.device)

    def _so_far(self) -> ScoreStatistics:
        """Of all images that were taken in."""
        total = self.statistics.copy()
        for part in self._parts.values():
            total.merge(part)
        return total

    def _status(self) -> str:
        """Of this process's images alone; asks the device, so not to be called at every batch."""
        so_far = self._so_far()
        found = self.convergence({0: so_far})
        return f"{so_far.images_with_outliers} with outliers, halves {found.overlap_of_halves[0]:.0%}"

    def _is_stable(self, snapshots: dict[int, ScoreStatistics]) -> bool:
        last_two = {count: self._summed(snapshots[count]) for count in sorted(snapshots)[-2:]}
        return is_stable(self.convergence(last_two))

    def convergence(self, snapshots: dict[int, ScoreStatistics]) -> Convergence:
        """The curve of these statistics, over the layers searched."""
        return convergence(
            snapshots,
            first_layer=self.search.first_layer,
            last_layer=self.search.last_layer,
            top_k=self.config.top_k or _COMPARED_NEURONS,
        )

    def _merged(self, snapshots: dict[int, ScoreStatistics]) -> dict[int, ScoreStatistics]:
        """Over all processes; places that a short stream never reached add no number of images."""
        merged = [self._summed(found) for found in (*snapshots.values(), self.statistics)]
        return {found.images_seen: found for found in merged}

    def _summed(self, statistics: ScoreStatistics) -> ScoreStatistics:
        return statistics.from_tensor(self.processes.sum(statistics.to_tensor()))


def _split(places: Sequence[int], cuts: Sequence[int]) -> Iterator[tuple[int | None, slice]]:
    """The images before each cut and after the one before it: the cut, and where they are; `None` after the last."""
    by_cut = itertools.groupby(range(len(places)), lambda image: bisect.bisect_right(cuts, places[image]))
    for behind, group in by_cut:
        images = list(group)
        yield (cuts[behind] if behind < len(cuts) else None), slice(images[0], images[-1] + 1)
