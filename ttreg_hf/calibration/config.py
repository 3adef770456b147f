"""Settings of a calibration, of the gate that its verdict passes, and the constants that automatic choices rest on."""

from dataclasses import dataclass, field
from pathlib import Path

from ttreg_hf.measuring.population_config import STAYING_SHARE, PopulationConfig
from ttreg_hf.measuring.position_config import PositionConfig
from ttreg_hf.records import check_types


@dataclass(frozen=True)
class CalibrationConfig:
    """How to look for register neurons. `None` means: chosen from the data, and recorded in the result.

    Layers are 0-based blocks, inclusive; negative ones count from the end. Norms are L2 over channels of a block's raw
    output. An outlier token is strictly above the threshold.

    Args:
        num_images: how many images to use, over all processes.
        batch_size: images in one forward pass of one process; the result does not depend on it. `None`: as many as fit
            into the device's free memory, 16 on a CPU.
        norm_threshold: in the units of the detection block's output. `None`: the dip between ordinary and outlier
            tokens; where the norms are one population there are no outliers.
        detection_layer: block whose output shows the outliers. `None`: the family's default, unless it separates them
            much worse than the best block; then the last block that does not.
        first_layer: first block searched. `None`: where outliers begin.
        last_layer: last block searched. `None`: where the last of them arrive.
        top_k: how many neurons to keep. `None`: the smallest set that takes the outliers away on held-out images.
        max_active_fraction: in an image, a neuron that exceeds 0.5 on more than this share of the tokens scores 0.
            `None`: no such filter.
        detect_on_prefix: let prefix tokens such as CLS count as outlier tokens, as the paper's released code does.
        rounds: how often to look: once more on the patched model where outliers are left. A round that does not
            improve on the one before is dropped. Only with an automatic `top_k`.
        budget: forward passes of single images that choosing neurons may cost in one round.
        seed: of the split into images that score, that choose and that verify.
    """

    num_images: int = 500
    batch_size: int | None = None
    norm_threshold: float | None = None
    detection_layer: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None
    top_k: int | None = None
    max_active_fraction: float | None = None
    detect_on_prefix: bool = False
    rounds: int = 2
    budget: int = 12_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "batch_size", "top_k", "norm_threshold", "rounds", "budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is above 0, got {value}.")
        if self.max_active_fraction is not None and not 0 <= self.max_active_fraction <= 1:
            raise ValueError(f"`max_active_fraction` is a share from 0 to 1, got {self.max_active_fraction}.")


@dataclass(frozen=True)
class RunConfig:
    """How a run goes. Nothing here changes what is found, but `early_stop`.

    Args:
        workers: processes that decode images, for each process that calibrates. `None`: 0 on a CPU, else its share of
            the cores, 16 at most.
        max_bad_share: images that may be unreadable, as a share of `num_images`, rounded up.
        state_directory: where a run saves its state, to be continued after a kill; `None` saves none.
        save_every: images, over all processes, between two states.
        resume: continue from the last state; from the beginning if there is none.
        early_stop: stop when two halves of the images agree on the best neurons, twice in a row.
        keep_states: leave the states there when the run has ended, for whoever writes its result down.
    """

    workers: int | None = None
    max_bad_share: float = 0.01
    state_directory: Path | None = None
    save_every: int = 10_000
    resume: bool = False
    early_stop: bool = False
    keep_states: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.save_every <= 0:
            raise ValueError(f"`save_every` is above 0, got {self.save_every}.")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` is a share from 0 to 1, got {self.max_bad_share}.")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"`workers` is 0 or more, got {self.workers}.")
        if self.resume and self.state_directory is None:
            raise ValueError("`resume` needs the `state_directory` of the run to continue, got none.")


@dataclass(frozen=True)
class GateConfig:
    """What a verdict of `fixed` asks for. Provisional until it has been measured on real checkpoints.

    Args:
        max_outlier_ratio: outlier tokens after / before patching, at the detection block.
        max_drift: 1 - mean cosine to the base model's features, of the pooled feature and of the patches that are no
            outliers there; the upper end of the 95 % interval over photographs has to keep it.
        max_drift_of_zeroed: where zeroing the neurons without moving them drifts further than that: also at most this
            share of zeroing's drift, likewise.
        max_ratio_of_random: outliers left, as a share of those that the best random draw leaves.
        max_later_ratio: patches of a second population at any block after the detection block, over the outlier
            tokens before patching.
        max_layer_share: neurons moved, over all that their layer has: where more write the outliers, moving them is
            moving the layer. (The published sets take at most 1 %.)
        num_images: images that the verdict rests on, at most; more, where fewer than eight photographs among them
            have an outlier token.
        random_draws: sets of random neurons that are moved to compare with.
        constant_mode: whether a result of `fixed` comes with the rows of constant mode, measured beside the token.
    """

    max_outlier_ratio: float = 0.1
    max_drift: float = 0.05
    max_drift_of_zeroed: float = 0.5
    max_ratio_of_random: float = 0.5
    max_later_ratio: float = 0.1
    max_layer_share: float = 0.25
    num_images: int = 48
    random_draws: int = 10
    constant_mode: bool = True

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class InspectionConfig:
    """How outliers are told from content, and where they begin and end.

    Excess is the log of a patch's norm over the median, at one block.

    Args:
        populations: when large norms count as a population of their own.
        block_tolerance: the family's default detection block is kept if its separation is this share of the best, else
            the last block with that share is taken; a block counts if it shows this share of the outliers of the
            default one, or of any if that shows none.
        content_share: a token is content if it had this share of its excess at the embeddings' output already.
        staying_share: an outlier of the base model stays one below the threshold, but above the norms of ordinary
            patches, if this share of its excess is left.
        positions: when a position is fixed.
        begin_share: of its final excess, from which on a token is on its way.
        end_share: from which on it has arrived.
        rare: share of the outliers that may begin before the first layer searched, or end after the last one.
        hint_evidence: in nats; a dip that shows so much is a hint at outliers where few images were looked at. (On 24
            to 48 images planted models showed 8.5 or more, models with heavy tails 6.5 or less: seeds 0 to 3 and 100
            to 102 of `scripts/confusion_table.py`.)
    """

    populations: PopulationConfig = field(default_factory=PopulationConfig)
    block_tolerance: float = 0.7
    content_share: float = 0.5
    staying_share: float = STAYING_SHARE
    positions: PositionConfig = field(default_factory=PositionConfig)
    begin_share: float = 0.25
    end_share: float = 0.75
    rare: float = 0.01
    hint_evidence: float = 7.5


@dataclass(frozen=True)
class SelectionConfig:
    """When a set of neurons is enough, and when a neuron costs too much.

    Args:
        gone: share of the outliers that may stay, at the detection block, for them to count as gone.
        few: share of the patches, at most, on which a register neuron is active; one that is active on more is dense.
        min_cost: feature similarity (mean cosine of the pooled feature to the base model's) that a neuron has to cost
            to give way to others that do its work. (Published: an early neuron that cost 2.7 points of top-1.)
        most_neurons: of the ranking that are tried.
        num_images: that choose, at most.
        num_others: images that check the choice, at most; 0: none do.
        elsewhere: share of the outliers that may stay on those.
        most_missing: neurons of the ranking that may come back for them.
    """

    gone: float = 0.01
    few: float = 0.2
    min_cost: float = 0.005
    most_neurons: int = 1024
    num_images: int = 32
    num_others: int = 64
    elsewhere: float = 0.02
    most_missing: int = 64


@dataclass(frozen=True)
class Constants:
    """What automatic choices rest on. No setting of anybody's: they were set on models whose truth is known.

    `scripts/confusion_table.py --without` shows what each of them earns there.
    """

    inspection: InspectionConfig = field(default_factory=InspectionConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
