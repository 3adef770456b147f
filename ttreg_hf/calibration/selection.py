"""Third stage: the smallest set of neurons that works, found by intervention on images that did not score.

Grows a prefix of the ranking until the outliers are gone, with neurons that fire on many ordinary patches only where
the others are not enough; takes out neurons that cost much of the feature and whose work others do too; then every
neuron that is not needed. Where outliers of more images stay, neurons come back until those are gone too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ttreg_hf.calibration.config import SelectionConfig
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.register_neuron import RegisterNeuron

Neurons = tuple[RegisterNeuron, ...]


@dataclass(frozen=True)
class SelectionStep:
    """One set of neurons that was tried.

    Args:
        stage: `"grow"`, `"cost"` (can others do the costly one's work?), `"prune"` (not needed?) or `"elsewhere"` (on
            other images: is one missing?).
        num_neurons: in the set.
        outlier_ratio: outliers after / before.
        feature_similarity: mean cosine of the pooled feature to the base model's.
        kept: whether it became the set to go on with.
    """

    stage: str
    num_neurons: int
    outlier_ratio: float
    feature_similarity: float
    kept: bool


@dataclass(frozen=True)
class Selection:
    """The set that was chosen, and the way to it.

    Args:
        register_neurons: in the order of their ranks.
        outcome: what moving them does to the images that chose them.
        path: all that was tried, in order.
        images_run: forward passes of single images.
        within_budget: whether nothing was cut short.
    """

    register_neurons: Neurons
    outcome: Outcome
    path: tuple[SelectionStep, ...]
    images_run: int
    within_budget: bool


def select(
    ranked: Sequence[RegisterNeuron],
    intervention: Intervention,
    *,
    budget: int,
    others: Intervention | None = None,
    dense: Collection[RegisterNeuron] = (),
    config: SelectionConfig | None = None,
) -> Selection:
    """The smallest set that works.

    Args:
        ranked: candidates, best first; at least one.
        intervention: on images that have outliers and did not score.
        budget: forward passes of single images; the best set so far is kept when they are spent.
        others: on more images that are not there to verify, if there are any: a few choose a set cheaply, but where
            many neurons share the outliers, more images need more of them.
        dense: candidates that fire on many ordinary patches too, as register neurons do not; tried only where the
            others are not enough. Without one of them content changes, and with it which later neurons fire: it can
            stand in for several that make outliers.
        config: when a set is enough.
    """
    config, tried = config or SelectionConfig(), _TriedSets(intervention, budget)
    grown = _grown(tuple(ranked), dense, tried, config.gone)
    bound = max(config.gone, tried.outcome(grown).outlier_ratio)
    chosen = _prune(_drop_replaceable_costly(grown, tried, bound, config.min_cost), tried, bound)
    if others is not None and others.has_outliers:
        left = _TriedSets(others, budget - intervention.images_run, core=chosen)
        chosen = _with_missing(tuple(ranked), dense, left, config)
        tried.join(left)
    return Selection(
        register_neurons=chosen,
        outcome=tried.outcome(chosen),
        path=tuple(tried.path),
        images_run=intervention.images_run + (0 if others is None else others.images_run),
        within_budget=tried.within_budget,
    )


class _TriedSets:
    """All sets that were tried on the same images, each only once.

    Args:
        intervention: on these images.
        budget: forward passes of single images that may be spent.
        core: neurons that every set holds besides; with them all steps are of the stage `"elsewhere"`.
    """

    def __init__(self, intervention: Intervention, budget: int, *, core: Neurons = ()) -> None:
        self.intervention, self.budget, self.core, self.within_budget = intervention, budget, core, True
        self.path: list[SelectionStep] = []
        self._known: dict[Neurons, Outcome] = {}

    def outcome(self, neurons: Neurons) -> Outcome:
        if neurons not in self._known:
            self._known[neurons] = self.intervention.outcome(self.core + neurons)
        return self._known[neurons]

    def has_budget(self) -> bool:
        """Whether one more set may be tried."""
        if self.intervention.images_run + self.intervention.before.num_images > self.budget:
            self.within_budget = False
        return self.within_budget

    def note(self, stage: str, neurons: Neurons, *, kept: bool) -> bool:
        """A step of the path; whether it is kept."""
        outcome, size = self.outcome(neurons), len(self.core) + len(neurons)
        stage = "elsewhere" if self.core else stage
        self.path.append(SelectionStep(stage, size, outcome.outlier_ratio, outcome.feature_similarity, kept))
        return kept

    def join(self, others: "_TriedSets") -> None:
        """Their path follows this one."""
        self.path += others.path
        self.within_budget = self.within_budget and others.within_budget


def _grown(ranked: Neurons, dense: Collection[RegisterNeuron], tried: _TriedSets, bound: float) -> Neurons:
    """A prefix of the ranking without the dense neurons if that is enough; else the better one of that and of all."""
    sparse = tuple(neuron for neuron in ranked if neuron not in dense)
    found: list[Neurons] = []
    for pool in filter(None, dict.fromkeys((sparse, ranked))):
        found.append(_grow(pool, tried, bound))
        if tried.outcome(found[-1]).outlier_ratio <= bound:
            return found[-1]
    return min(found, key=lambda neurons: tried.outcome(neurons).outlier_ratio)


def _grow(ranked: Neurons, tried: _TriedSets, bound: float) -> Neurons:
    """The shortest prefix that is enough, by doubling and bisection; else the one that leaves fewest outliers."""
    by_count: dict[int, float] = {}

    def is_enough(count: int) -> bool:
        by_count[count] = tried.outcome(ranked[:count]).outlier_ratio
        return tried.note("grow", ranked[:count], kept=by_count[count] <= bound)

    low, high = 0, 1
    while not is_enough(high):
        if high == len(ranked) or not tried.has_budget():
            return ranked[: min(by_count, key=lambda count: (by_count[count], count))]
        low, high = high, min(2 * high, len(ranked))
    while high - low > 1 and tried.has_budget():
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return ranked[:high]


def _drop_replaceable_costly(neurons: Neurons, tried: _TriedSets, bound: float, min_cost: float) -> Neurons:
    """Takes out neurons that cost much of the feature, while the others that do their work are still there.

    Pruning looks at outliers alone: it may drop those others first, and then need the costly one. It is looked for
    among the half that costs more, down to one neuron.
    """
    while len(neurons) > 1 and 1 - tried.outcome(neurons).feature_similarity >= min_cost:
        part = neurons
        while len(part) > 1 and tried.has_budget():
            halves = part[: len(part) // 2], part[len(part) // 2 :]
            part = min(halves, key=lambda half: tried.outcome(half).feature_similarity)
        if not tried.has_budget():
            break
        rest = tuple(neuron for neuron in neurons if neuron != part[0])
        gain = tried.outcome(rest).feature_similarity - tried.outcome(neurons).feature_similarity
        is_fine = tried.outcome(rest).outlier_ratio <= bound and gain >= min_cost
        if not tried.note("cost", rest, kept=is_fine):
            break
        neurons = rest
    return neurons


def _prune(neurons: Neurons, tried: _TriedSets, bound: float) -> Neurons:
    """Takes out what is not needed, weakest first, in runs; one that is needed is halved, down to single neurons.

    The weaker half is settled before anything stronger is tried, so that a weak neuron does not stay because of a
    strong one that went. What was needed is not tried again: it stays so when others go.
    """
    middle = len(neurons) // 2
    runs = [neurons[:middle], neurons[middle:]] if middle else []
    while runs and tried.has_budget():
        run = runs.pop()
        rest = tuple(neuron for neuron in neurons if neuron not in run)
        if (rest or tried.core) and tried.note("prune", rest, kept=tried.outcome(rest).outlier_ratio <= bound):
            neurons = rest
        elif len(run) > 1:
            runs += [run[: len(run) // 2], run[len(run) // 2 :]]
    return neurons


def _with_missing(
    ranked: Neurons, dense: Collection[RegisterNeuron], tried: _TriedSets, config: SelectionConfig
) -> Neurons:
    """The core of these tried, and the neurons without which their images keep outliers, in the order of ranks."""
    core = tried.core
    if not tried.has_budget():
        return core
    now = tried.outcome(()).outlier_ratio
    dense_last = sorted(ranked, key=lambda neuron: neuron in dense)
    rest = tuple(neuron for neuron in dense_last if neuron not in core)[: config.most_missing]
    if tried.note("elsewhere", (), kept=now <= config.elsewhere) or not rest:
        return core
    back = _grow(rest, tried, config.elsewhere)
    left = tried.outcome(back).outlier_ratio
    if left >= now:
        return core
    strong_last = back[::-1]  # those go first: the images that chose did not miss them
    needed = _prune(strong_last, tried, max(config.elsewhere, left))
    return tuple(neuron for neuron in ranked if neuron in {*core, *needed})
