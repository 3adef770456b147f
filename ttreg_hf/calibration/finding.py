"""What is to be moved in a model, and the verdict on it: neurons, and spikes of the position table.

Outliers at the same places in every image count at first, and what makes them is looked for: rows of the position
table, and neurons as for all others. Where that does not hold before the gate, they are left out and named.
"""

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.constant_mode import ConstantMode
from ttreg_hf.calibration.inspection import Inspection
from ttreg_hf.calibration.rounds import Choice, RoundScores
from ttreg_hf.calibration.run_state import StateStore
from ttreg_hf.calibration.stages import Stages
from ttreg_hf.calibration.verdict import (
    CLEAN,
    FIXED,
    MIN_CLEAN,
    TOO_FEW,
    UNRESOLVED,
    Look,
    hint_of_outliers,
    is_too_few,
    none_held_out,
    too_few_for_clean,
)
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.known.position_table import why_not_taken
from ttreg_hf.measuring.neuron_scores import rank_neurons
from ttreg_hf.measuring.position_report import TABLE, Place, PositionReport
from ttreg_hf.register_neuron import RegisterNeuron

_FIXED_POSITIONS = (
    "Some tokens are outliers at the same places in every image, and nothing was found that takes them away without "
    "harm; `ttreg inspect` names what makes them."
)
_NOT_TAKEN = "spikes of the position table make some of them, and cannot be taken away in this family"
_GIVE_MORE = "Give more with `--dataset` and `--num-images`."
_TOO_FEW_FOR_SO_MANY = (
    f"{TOO_FEW} for so many neurons: these take the outliers of the images that chose them away, but not those of "
    f"others, which other neurons make. {_GIVE_MORE}"
)
_NO_ACTIVE_NEURON = (
    "No neuron between the layers searched is active on the outlier tokens. Search others with `--first-layer` and "
    "`--last-layer`."
)


@dataclass(frozen=True)
class Finding:
    """What is to be moved, and the verdict on it; arguments as the fields of `CalibrationResult`.

    Args:
        inspection: by which rule it was found.
        scores: of the neurons, where they were scored.
    """

    inspection: Inspection
    scores: RoundScores | None
    verdict: str
    looks: tuple[Look, ...]
    register_neurons: tuple[RegisterNeuron, ...] = ()
    fixed_positions: tuple[Place, ...] = ()
    reasons: tuple[str, ...] = ()
    verification: Verification | None = None
    choice: Choice | None = None
    constant_mode: ConstantMode | None = None
    constants: Tensor | None = None


def find(
    stages: Stages,
    inspection: Inspection,
    positions: PositionReport,
    gate: GateConfig,
    *,
    store: StateStore | None,
    early_stop: bool,
) -> Finding:
    """What takes the outliers away, those at fixed positions too where that holds before the gate.

    Args:
        stages: over the model's images.
        inspection: of the first of them.
        positions: what makes outliers at fixed positions.
        gate: bounds of the verdict `fixed`.
        store: where scores are saved, to be continued after a kill.
        early_stop: as in `RunConfig`.
    """
    tried = None
    if _can_be_tried(stages, inspection):
        tried = _counting_fixed(stages, inspection, positions, gate, early_stop)
        if stages.processes.share(tried.verdict == FIXED):  # all go the same way from here
            return tried
        if _spikes(positions) and (why := why_not_taken(stages.tower.trunk)):
            tried = dataclasses.replace(tried, reasons=(*tried.reasons, f"{_NOT_TAKEN}: {why}."))
    scores = None
    if inspection.has_outliers or stages.config.norm_threshold is not None:
        scores = stages.score(inspection, store=store, early_stop=early_stop)
    found = _leaving_fixed(stages, inspection, scores, gate)
    return found if tried is None else dataclasses.replace(found, reasons=_reasons(tried, found))


def _spikes(positions: PositionReport) -> tuple[Place, ...]:
    """Rows of the position table with which fixed positions begin."""
    begun = [place for source in positions.sources if source.stage == TABLE for place in source.places]
    return positions.in_table(begun)


def _reasons(tried: Finding, found: Finding) -> tuple[str, ...]:
    """Why fixed positions are left out, before all else that is found without them."""
    why = tried.reasons
    if not is_too_few(why):
        why = (_FIXED_POSITIONS, *(f"With those counted: {reason}" for reason in why))
    return tuple(dict.fromkeys((*why, *found.reasons)))


def _can_be_tried(stages: Stages, inspection: Inspection) -> bool:
    """Whether there are outliers at fixed positions, and nothing was asked for that says how neurons are chosen."""
    return bool(inspection.rule.fixed_positions) and stages.config.top_k is None


def _counting_fixed(
    stages: Stages, inspection: Inspection, positions: PositionReport, gate: GateConfig, early_stop: bool
) -> Finding:
    """What takes all of them away: first spikes of the table, then neurons, if outliers are left."""
    rule = dataclasses.replace(inspection.rule, counts_fixed=True)
    taking = stages.taking(() if why_not_taken(stages.tower.trunk) else _spikes(positions))
    counting = stages.inspect(rule=rule)
    share = inspection.report.fixed_position_share
    counting = dataclasses.replace(counting, report=dataclasses.replace(counting.report, fixed_position_share=share))
    if taking.fixed_positions and taking.are_gone(rule, gate):
        return _verified(taking, counting, None, (), gate)
    left = stages.inspect(taking.start, rule=rule) if taking.fixed_positions else counting
    if not left.has_outliers:
        return _verified(taking, counting, None, (), gate)
    scores = taking.score(left, taking.start, early_stop=early_stop)
    found = _of_scores(taking, counting, scores, gate)
    return dataclasses.replace(found, inspection=counting, scores=scores)


def _leaving_fixed(stages: Stages, inspection: Inspection, scores: RoundScores | None, gate: GateConfig) -> Finding:
    """The neurons that are chosen, or asked for, and the verdict on them; fixed positions count for nothing."""
    if scores is None or scores.images_with_outliers == 0:
        return _without_outliers(stages, inspection, scores)
    found = _of_scores(stages, inspection, scores, gate)
    if inspection.rule.left_out:
        return dataclasses.replace(found, reasons=(*found.reasons, _FIXED_POSITIONS))
    return found


def _of_scores(stages: Stages, inspection: Inspection, scores: RoundScores, gate: GateConfig) -> Finding:
    """The neurons that are chosen among those with scores, or asked for, and the verdict on them."""
    search, top_k = scores.search, stages.config.top_k
    ranked = rank_neurons(
        scores.scores_LF, first_layer=search.first_layer, last_layer=search.last_layer, top_k=top_k or 1
    )
    if not ranked:
        return Finding(inspection, scores, UNRESOLVED, stages.looks(inspection), reasons=(_NO_ACTIVE_NEURON,))
    if top_k is not None:
        return _verified(stages, inspection, scores, stages.processes.share(ranked), gate)
    choice = stages.select(scores, gate)
    return _verified(stages, inspection, scores, choice.register_neurons, gate, choice)


def _verified(
    stages: Stages,
    inspection: Inspection,
    scores: RoundScores | None,
    neurons: tuple[RegisterNeuron, ...],
    gate: GateConfig,
    choice: Choice | None = None,
) -> Finding:
    """The verdict on these neurons, and on the spikes that the stages take away."""
    to_verify, in_sample = stages.to_verify(inspection.rule, gate)
    found = stages.verify(to_verify, neurons, in_sample=in_sample, gate=gate)
    reasons = list(found.reasons(stages.num_photographs))
    if stages.is_split and found.in_sample:
        reasons.insert(0, none_held_out(inspection.report.images_with_outliers))
    if choice is not None and choice.outcome.outlier_ratio <= gate.max_outlier_ratio < found.outlier_ratio:
        reasons.append(_TOO_FEW_FOR_SO_MANY)
    finding = Finding(
        inspection,
        scores,
        UNRESOLVED if is_too_few(reasons) else found.verdict,
        stages.looks(inspection),
        neurons,
        stages.fixed_positions,
        tuple(reasons),
        found,
        choice,
    )
    if stages.processes.share(finding.verdict != FIXED or not (neurons and gate.constant_mode)):
        return finding
    constant_mode, constants = stages.measure_constants(to_verify, neurons, gate=gate)
    return dataclasses.replace(finding, constant_mode=constant_mode, constants=constants)


def _without_outliers(stages: Stages, inspection: Inspection, scores: RoundScores | None) -> Finding:
    """`clean`, if that was seen on enough photographs, at the size of the training too."""
    looks = stages.looks(inspection)
    first, last = looks[0], looks[-1]
    reasons = []
    if any(look.fixed_position_share > 0 for look in looks):
        reasons.append(_FIXED_POSITIONS)
    reasons += [hint_of_outliers(look) for look in looks if look.has_hint]
    if first.with_outliers:
        reasons.append(
            f"{TOO_FEW}: {first.with_outliers} of {first.num_photographs} photographs have an outlier "
            f"token, but none of those that score neurons. {_GIVE_MORE}"
        )
    elif last.with_outliers:
        reasons.append(
            f"No outlier token at {first.size}, but at {last.size}, the size of the model's training, "
            f"{last.with_outliers} of {last.num_photographs} photographs have one. Calibrate at that size: set `size` "
            "and `crop_size` in the image processor's preprocessor_config.json."
        )
    elif min(look.num_photographs for look in looks) < MIN_CLEAN:
        reasons.append(too_few_for_clean(min(look.num_photographs for look in looks)))
    return Finding(inspection, scores, UNRESOLVED if reasons else CLEAN, looks, reasons=tuple(reasons))
