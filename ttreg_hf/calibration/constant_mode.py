"""Constant mode: rows that do the register's work without a token, and what they do beside it.

From the last shifted layer on the register carries the same keys and values for every image, and these are linear in
what the attention reads: the mean row is enough. Where attention that finds no register makes outliers of its own, the
rows have to begin earlier. Letters: `L` blocks, `l` first block that reads a row, `B` images, `D` channels, `U`
photographs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttreg_hf.calibration.comparison import Comparison, compare
from ttreg_hf.calibration.config import GateConfig, SelectionConfig
from ttreg_hf.calibration.gate import Drift, GateCheck, drift_checks, outlier_check
from ttreg_hf.measuring.feature_drift import FeatureDrift, Seen, feature_drifts
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.register_rows import ShuffledRegisters, rows_of
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

TOKEN, CONSTANT, ZEROED = "token", "constant", "zeroed"
RANDOM, MEAN_PATCH, SHUFFLED = "random", "mean patch", "shuffled"
_KEEP_THE_TOKEN = "Keep token mode, the default: it was verified."


@dataclass(frozen=True)
class ModeEffect:
    """What a way of giving the attentions a register does, seen from the base model.

    Args:
        outlier_ratio: outliers after / before.
        drift: of the pooled feature, and of patches that are ordinary in the base model.
    """

    outlier_ratio: float
    drift: Drift


@dataclass(frozen=True)
class TriedFirstLayer:
    """A first layer, and what it does on the images that choose: outliers after / before, and mean drifts."""

    layer: int
    outlier_ratio: float
    pooled: float
    patches: float


@dataclass(frozen=True)
class ConstantMode:
    """The constant rows, how they were chosen, and what they do on the images that verify.

    Args:
        first_layer: l; of those that take the outliers away the one with the least drift.
        num_images: that the rows are means over.
        tried: first layers that were tried, on the images that choose.
        agreement: for each row, cosine between the means over two halves of its images.
        effects: by name: the token; the constants; the neurons zeroed and no row read; random rows of the same norms;
            the mean patch's rows; the token, each attention reading the register of another image.
        checks: conditions for publishing a checkpoint in this mode.
    """

    first_layer: int
    num_images: int
    tried: tuple[TriedFirstLayer, ...]
    agreement: tuple[float, ...]
    effects: dict[str, ModeEffect]
    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which do not, and what to try."""
        return tuple(check.reason for check in self.checks if not check.passed)


@dataclass(frozen=True)
class _Rows:
    """Rows of all layers, `(L, D)` float32, of the register and of the mean patch."""

    registers_LD: Tensor
    patches_LD: Tensor
    halves: tuple[Tensor, Tensor]
    num_images: int


def measure_constants(
    to_average: Intervention,
    to_choose: Intervention,
    to_verify: Intervention,
    neurons: Sequence[RegisterNeuron],
    *,
    gate: GateConfig,
    tolerated: float = SelectionConfig.elsewhere,
    seed: int = 0,
) -> tuple[ConstantMode, Tensor]:
    """The rows of a set of register neurons, and what constant mode does with them.

    Args:
        to_average: whose images the rows are means over.
        to_choose: whose images choose the first layer.
        to_verify: whose images report.
        neurons: to move; at least one.
        gate: bounds of the conditions.
        tolerated: share of the outliers that may stay for a first layer to be as good as any other.
        seed: of the random rows.

    Returns:
        What was found, and the constants `(L - l, D)`, float32 on the CPU.
    """
    rows = _mean_rows(to_average, neurons)
    layers = _first_layers(neurons, len(rows.registers_LD))
    tried = _tried(to_choose, neurons, rows.registers_LD, layers)
    first = chosen_first_layer(tried, tolerated)
    effects, checks = _effects(to_verify, neurons, rows, first, gate=gate, seed=seed)
    one, other = rows.halves
    agreement_L = torch.where((one == other).all(-1), 1.0, torch.cosine_similarity(one, other, dim=-1))
    found = ConstantMode(first, rows.num_images, tried, tuple(agreement_L[first:].tolist()), effects, checks)
    return found, rows.registers_LD[first:].clone()


def chosen_first_layer(tried: Sequence[TriedFirstLayer], tolerated: float) -> int:
    """Where the fewest outliers stay; of layers where no more than `tolerated` do, that with the least drift."""
    return min(tried, key=lambda each: (max(each.outlier_ratio, tolerated), each.pooled + each.patches)).layer


def _mean_rows(images: Intervention, neurons: Sequence[RegisterNeuron]) -> _Rows:
    rows = rows_of(images.patched(neurons), images.batches, images.limit)
    registers_BLD = rows.registers_BLD
    halves = (registers_BLD[0::2].mean(0), registers_BLD[1::2].mean(0) if len(registers_BLD) > 1 else registers_BLD[0])
    return _Rows(registers_BLD.mean(0).float(), rows.patches_BLD.mean(0).float(), halves, len(registers_BLD))


def _first_layers(neurons: Sequence[RegisterNeuron], num_layers: int) -> list[int]:
    """Layer 0, the first shifted one, and those around the last."""
    shifted = [neuron.layer for neuron in neurons]
    last = max(shifted)
    return sorted({0, min(shifted), *range(last - 1, last + 3)} & set(range(num_layers)))


def _constant(images: Intervention, neurons: Sequence[RegisterNeuron], rows_LD: Tensor, first: int) -> VisionTower:
    """A twin in constant mode, which no option of the token mode reaches."""
    options = {name: images.options[name] for name in ("fixed_positions",) if name in images.options}
    return images.tower.patched(neurons, test_time_register_mode="constant", constants=rows_LD[first:], **options)


def _tried(
    images: Intervention, neurons: Sequence[RegisterNeuron], rows_LD: Tensor, layers: Sequence[int]
) -> tuple[TriedFirstLayer, ...]:
    found, drifts = _compared(images, {str(layer): _constant(images, neurons, rows_LD, layer) for layer in layers})
    return tuple(
        TriedFirstLayer(
            int(name), found[name].outlier_ratio, float(drift.pooled_U.mean()), float(drift.patches_U.mean())
        )
        for name, drift in drifts.items()
    )


def _compared(
    images: Intervention, towers: Mapping[str, VisionTower]
) -> tuple[dict[str, Comparison], dict[str, FeatureDrift]]:
    """What each twin does to outliers and to features, by the same names."""
    found = {name: compare(images.before, images.measure(tower)) for name, tower in towers.items()}
    seen = {name: Seen(tower) for name, tower in towers.items()}
    return found, feature_drifts(images.tower, seen, images.batches, images.before, images.limit)


def _effects(
    images: Intervention,
    neurons: Sequence[RegisterNeuron],
    rows: _Rows,
    first: int,
    *,
    gate: GateConfig,
    seed: int,
) -> tuple[dict[str, ModeEffect], tuple[GateCheck, ...]]:
    """Of every way, and the conditions of the constant one."""
    count, width = rows.registers_LD.shape
    random_LD = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    random_LD *= (rows.registers_LD.norm(dim=1) / random_LD.norm(dim=1)).unsqueeze(1)
    given = {CONSTANT: rows.registers_LD, RANDOM: random_LD, MEAN_PATCH: rows.patches_LD}
    towers = {name: _constant(images, neurons, rows_LD, first) for name, rows_LD in given.items()}
    towers[ZEROED] = _constant(images, neurons, rows.registers_LD, count)
    towers[TOKEN], towers[SHUFFLED] = (images.patched(neurons) for _ in range(2))
    with ShuffledRegisters(towers[SHUFFLED], first):
        found, drifts = _compared(images, towers)
    effects = {
        name: ModeEffect(found[name].outlier_ratio, Drift.of(drifts[name]))
        for name in (TOKEN, CONSTANT, ZEROED, RANDOM, MEAN_PATCH, SHUFFLED)
    }
    checks = outlier_check(found[CONSTANT], gate), *drift_checks(drifts[CONSTANT], drifts[ZEROED], gate)
    return effects, tuple(replace(check, remedy=_KEEP_THE_TOKEN) for check in checks)
