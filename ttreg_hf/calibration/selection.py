"""Third stage: the smallest set of neurons that works, found by intervention on images that did not score.

Grows a prefix of the ranking until the outliers are gone, then takes out neurons that cost much of the feature and
whose work others do too, every neuron that is not needed, and those that cost more of the feature than their outliers
are worth. Where outliers of other images stay, neurons come back until those are gone too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ttreg_hf.calibration.config import SelectionConfig
from ttreg_hf.calibration.tried_sets import SelectionStep, TriedSets
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.register_neuron import RegisterNeuron

PER_NEURON, PER_LAYER = "per_neuron", "per_layer"


@dataclass(frozen=True)
class Selection:
    """The set that was chosen, and the way to it.

    Args:
        register_neurons: in the order of their ranks.
        shift_value: `"per_neuron"` or `"per_layer"`, whichever did better.
        per_neuron, per_layer: what either does with this set.
        path: all that was tried, in order.
        images_run: forward passes of single images.
        within_budget: whether nothing was cut short.
    """

    register_neurons: tuple[RegisterNeuron, ...]
    shift_value: str
    per_neuron: Outcome
    per_layer: Outcome
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
    config = config or SelectionConfig()
    tried = TriedSets(intervention, budget)
    grown = _grown(ranked, dense, tried, config)
    bound = config.enough(intervention.num_outliers, after_growing=tried.outcome(grown).outlier_ratio)
    needed = _prune(_drop_replaceable_costly(grown, tried, bound, config), tried, bound)
    chosen = _drop_costly(needed, tried, config)
    if others is not None and others.has_outliers:
        left = TriedSets(others, budget - intervention.images_run, core=chosen, stage="elsewhere")
        chosen = _with_missing(ranked, dense, left, config)
        tried.join(left)
    per_neuron = tried.outcome(chosen)
    per_layer = intervention.outcome(chosen, shift_value=PER_LAYER)
    is_better = _is_better(per_layer, per_neuron, config)
    tried.note("value", chosen, per_layer, kept=is_better)
    return Selection(
        register_neurons=chosen,
        shift_value=PER_LAYER if is_better else PER_NEURON,
        per_neuron=per_neuron,
        per_layer=per_layer,
        path=tuple(tried.path),
        images_run=intervention.images_run + (0 if others is None else others.images_run),
        within_budget=tried.within_budget,
    )


def _grown(
    ranked: Sequence[RegisterNeuron],
    dense: Collection[RegisterNeuron],
    tried: TriedSets,
    config: SelectionConfig,
) -> tuple[RegisterNeuron, ...]:
    """A prefix of the ranking without the dense neurons if that is enough; else the better one of that and of all."""
    sparse = tuple(neuron for neuron in ranked if neuron not in dense)
    found: list[tuple[RegisterNeuron, ...]] = []
    for pool in filter(None, dict.fromkeys((sparse, tuple(ranked)))):
        found.append(_grow(pool[: config.most_neurons], tried, config))
        if tried.outcome(found[-1]).outlier_ratio <= config.enough(tried.intervention.num_outliers):
            return found[-1]
    return min(found, key=lambda neurons: tried.outcome(neurons).outlier_ratio)


def _grow(ranked: tuple[RegisterNeuron, ...], tried: TriedSets, config: SelectionConfig) -> tuple[RegisterNeuron, ...]:
    """The shortest prefix that is enough, by doubling and bisection; else the one that leaves fewest outliers."""
    by_count: dict[int, Outcome] = {}
    bound = config.enough(tried.intervention.num_outliers)

    def is_enough(count: int) -> bool:
        by_count[count] = tried.outcome(ranked[:count])
        enough = by_count[count].outlier_ratio <= bound
        tried.note("grow", ranked[:count], by_count[count], kept=enough)
        return enough

    low, high = 0, 1
    while not is_enough(high):
        if high == len(ranked) or not tried.has_budget():
            return ranked[: min(by_count, key=lambda count: (by_count[count].outlier_ratio, count))]
        low, high = high, min(2 * high, len(ranked))
    while high - low > 1 and tried.has_budget():
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return ranked[:high]


def _prune(neurons: tuple[RegisterNeuron, ...], tried: TriedSets, bound: float) -> tuple[RegisterNeuron, ...]:
    """Takes out what is not needed, weakest first, in runs; one that is needed is halved, down to single neurons.

    The weaker half is settled before anything stronger is tried, so that a weak neuron does not stay because of a
    strong one that went. What was needed is not tried again: it stays so when others go.
    """
    middle = len(neurons) // 2
    runs = [neurons[:middle], neurons[middle:]] if middle else []
    while runs and tried.has_budget():
        run = runs.pop()
        rest = tuple(neuron for neuron in neurons if neuron not in run)
        if tried.core or rest:
            outcome = tried.outcome(rest)
            is_fine = outcome.outlier_ratio <= bound
            tried.note("prune", rest, outcome, kept=is_fine)
            if is_fine:
                neurons = rest
                continue
        if len(run) > 1:
            runs += [run[: len(run) // 2], run[len(run) // 2 :]]
    return neurons


def _drop_replaceable_costly(
    neurons: tuple[RegisterNeuron, ...], tried: TriedSets, bound: float, config: SelectionConfig
) -> tuple[RegisterNeuron, ...]:
    """Takes out neurons that cost much of the feature, while the others that do their work are still there.

    Pruning looks at outliers alone: it may drop those others first, and then need the costly one. It is looked for
    among the half that costs more, down to one neuron.
    """
    while len(neurons) > 1 and 1 - tried.outcome(neurons).feature_similarity >= config.min_replaceable_cost:
        part = neurons
        while len(part) > 1 and tried.has_budget():
            halves = part[: len(part) // 2], part[len(part) // 2 :]
            part = min(halves, key=lambda half: tried.outcome(half).feature_similarity)
        if len(part) > 1 or not tried.has_budget():
            break
        rest = tuple(neuron for neuron in neurons if neuron != part[0])
        now, outcome = tried.outcome(neurons), tried.outcome(rest)
        gain = outcome.feature_similarity - now.feature_similarity
        is_fine = outcome.outlier_ratio <= bound and gain >= config.min_replaceable_cost
        tried.note("cost", rest, outcome, kept=is_fine)
        if not is_fine:
            break
        neurons = rest
    return neurons


def _drop_costly(
    neurons: tuple[RegisterNeuron, ...], tried: TriedSets, config: SelectionConfig
) -> tuple[RegisterNeuron, ...]:
    """Takes out, one by one, the neuron whose outliers are least worth its cost, while one is not."""
    least = 0 if tried.core else 1
    while len(neurons) > least and 1 - tried.outcome(neurons).feature_similarity >= config.min_cost:
        now = tried.outcome(neurons)
        best: tuple[float, tuple[RegisterNeuron, ...], Outcome] | None = None
        for place in range(len(neurons)):
            if not tried.has_budget():
                break
            rest = neurons[:place] + neurons[place + 1 :]
            outcome = tried.outcome(rest)
            gain = outcome.feature_similarity - now.feature_similarity
            loss = max(0.0, outcome.outlier_ratio - now.outlier_ratio)
            if gain < config.min_cost or outcome.outlier_ratio > config.tolerated or loss > config.worth * gain:
                continue
            if best is None or gain - loss > best[0]:
                best = (gain - loss, rest, outcome)
        if best is None:
            break
        neurons = best[1]
        tried.note("cost", neurons, best[2], kept=True)
    return neurons


def _with_missing(
    ranked: Sequence[RegisterNeuron],
    dense: Collection[RegisterNeuron],
    tried: TriedSets,
    config: SelectionConfig,
) -> tuple[RegisterNeuron, ...]:
    """The core of these tried, and the neurons without which their images keep outliers, in the order of ranks."""
    core, config = tried.core, replace(config, gone=config.elsewhere)
    if not tried.has_budget():
        return core
    now = tried.outcome(())
    is_enough = now.outlier_ratio <= config.enough(tried.intervention.num_outliers)
    tried.note("elsewhere", (), now, kept=is_enough)
    dense_last = sorted(ranked, key=lambda neuron: neuron in dense)
    rest = tuple(neuron for neuron in dense_last if neuron not in core)[: config.most_missing]
    if is_enough or not rest:
        return core
    back = _grow(rest, tried, config)
    left = tried.outcome(back).outlier_ratio
    if left >= now.outlier_ratio:
        return core
    bound = config.enough(tried.intervention.num_outliers, after_growing=left)
    strong_last = back[::-1]  # those go first: the images that chose did not miss them
    needed = _drop_costly(_prune(strong_last, tried, bound), tried, config)
    return tuple(neuron for neuron in ranked if neuron in {*core, *needed})


def _is_better(per_layer: Outcome, per_neuron: Outcome, config: SelectionConfig) -> bool:
    """Whether one scalar a layer does clearly better: it takes the outliers away, or keeps more of the feature."""
    if per_neuron.outlier_ratio > config.tolerated:
        return per_layer.outlier_ratio < config.half * per_neuron.outlier_ratio
    gain = per_layer.feature_similarity - per_neuron.feature_similarity
    return per_layer.outlier_ratio <= config.tolerated and gain > config.min_gain
