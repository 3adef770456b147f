"""Which artifacts are grown: variants by name."""

from dataclasses import dataclass

CHECKPOINT = "checkpoint"
"""Folder of a grown model, in that of its variant and seed."""

MLPS, ALL, NO_MLPS = "MLPs and the last third of the blocks", "all weights", "all weights but the MLPs'"


@dataclass(frozen=True)
class Variant:
    """How artifacts are grown in a model whose features are kept.

    Args:
        name: in commands and tables.
        trained: which weights may change.
        ratio: largest patch norms over the median that are rewarded.
        outliers: patches of each image that are to become outliers.
        image_size: height and width in pixels.
        batch_size: images of a step.
        other_size: at which the constants that were measured at `image_size` are used too.
        expected: verdicts of a calibration that are right.
    """

    name: str
    trained: str
    ratio: float
    outliers: int = 3
    image_size: int = 224
    batch_size: int = 64
    other_size: int = 518
    expected: tuple[str, ...] = ("fixed",)

    @property
    def num_spared(self) -> int:
        """Patches of an image that need not keep their features."""
        return 2 * self.outliers


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("mlps", MLPS, 8.0),
        Variant("all", ALL, 8.0),
        Variant("strong", ALL, 20.0),
        Variant("single", MLPS, 12.0, outliers=1),
        Variant("large", MLPS, 8.0, outliers=8, image_size=518, batch_size=12, other_size=224),
        # attention may write by itself, or switch on neurons that were there before: both were seen
        Variant("attention", NO_MLPS, 8.0, expected=("unresolved", "fixed")),
    )
}
