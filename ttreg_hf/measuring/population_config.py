"""When tokens with large norms count as a population of their own: constants, and nothing that imports torch."""

from dataclasses import dataclass

MIN_OUTLIER_RATIO = 1.5
"""Norm of an outlier token over the median, at least; less is an ordinary spread."""
STAYING_SHARE = 0.5
"""Of its excess (log of norm over median): an outlier that keeps more of it stays one when patched."""


@dataclass(frozen=True)
class PopulationConfig:
    """When tokens with large norms count as a population of their own.

    Args:
        min_evidence: of the dip, in nats: one population would show it with probability `exp(-min_evidence)` at most.
            The most telling of many dips shows more: of 8,000 draws of |t| with 2 degrees of freedom (500 to 14,000
            values) 2 had more than 8, and about 30 more than 5.
        min_ratio: norm of the dip, in units of the median.
        min_deviations: robust standard deviations (of the log norms) from the median to where the peak behind the
            dip begins.
        max_share: of the tokens that may lie above the dip.
        bins_per_octave: of the histogram that dips are looked for in; divides 64.
        widest: octaves that a valley and the peak behind it may be wide each.
    """

    min_evidence: float = 10.0
    min_ratio: float = MIN_OUTLIER_RATIO
    min_deviations: float = 3.0
    max_share: float = 0.3
    bins_per_octave: int = 8
    widest: int = 3
