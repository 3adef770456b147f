"""The three verdicts: what each one says, and how many photographs it takes to say it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttreg_hf.measuring.intervals import MIN_PHOTOGRAPHS

FIXED, CLEAN, UNRESOLVED = "fixed", "clean", "unresolved"
TOO_FEW = "too few images"
MIN_VERIFIED = MIN_PHOTOGRAPHS
"""Photographs that have to verify."""
MIN_WITH_OUTLIERS = MIN_VERIFIED // 2
"""Of these, so many have to have an outlier token in the base model."""
MIN_TO_FIX = 3 * MIN_PHOTOGRAPHS
"""Photographs for `fixed`: eight to score, eight to choose, eight to verify."""
MIN_CLEAN = 29
"""Photographs without an outlier token for `clean`: fewer than 10 % of such photographs have one, at 95 %."""
_CONFIDENCE = 0.95
_MEANING = {
    FIXED: "register neurons found, and moving them works",
    UNRESOLVED: "it was not shown that patching helps: do not patch",
}
_SPIKES_FOUND = "spikes of the position table found, and moving them to the register works"
_NOT_LOOKED_FOR = "Low-norm artifacts are not excluded."


@dataclass(frozen=True)
class Look:
    """What was seen of a model's patch norms at one image size.

    Args:
        image_size: height and width in pixels; of the first image, where they differ in size.
        num_photographs: that were looked at.
        with_outliers: how many of them have an outlier token.
        fixed_position_share: of the patches above the threshold, those at the same places in every image.
        has_hint: whether the norms look as if there were outliers, and more images could show it.
    """

    image_size: tuple[int, int]
    num_photographs: int
    with_outliers: int
    fixed_position_share: float = 0.0
    has_hint: bool = False

    @property
    def is_clean(self) -> bool:
        return self.with_outliers == 0 and self.fixed_position_share == 0 and not self.has_hint

    @property
    def size(self) -> str:
        """Such as `224 px`, or `224 x 336 px` (height x width)."""
        height, width = self.image_size
        return f"{height} px" if height == width else f"{height} x {width} px"


def largest_share(num_photographs: int) -> float:
    """Share of photographs with an outlier token that none among so many excludes, at 95 %: `1 - 0.05^(1/n)`."""
    return 1 - (1 - _CONFIDENCE) ** (1 / num_photographs)


def is_too_few(reasons: Sequence[str]) -> bool:
    """Whether the number of images is the first reason: all else then rests on too few."""
    return bool(reasons) and reasons[0].startswith(TOO_FEW)


def headline(verdict: str, reasons: Sequence[str]) -> str:
    """The verdict, such as `fixed` or `unresolved: too few images`."""
    return f"{verdict}: {TOO_FEW}" if verdict == UNRESOLVED and is_too_few(reasons) else verdict


def meaning(verdict: str, looks: Sequence[Look], source: str, *, spikes_alone: bool = False) -> str:
    """What a verdict says, and what it does not say.

    Args:
        verdict: one of the three.
        looks: at the norms; for `clean`, at every size that was looked at.
        source: of the images, in words.
        spikes_alone: whether no neuron is moved, and only spikes of the position table are.
    """
    if verdict == FIXED and spikes_alone:
        return _SPIKES_FOUND
    if verdict != CLEAN:
        return _MEANING[verdict]
    first, *others = looks
    also = "".join(f", nor at {look.size}, the training size, in {look.num_photographs} of them" for look in others)
    return (
        f"no high-norm outlier patches in {first.num_photographs} photographs of {source} at {first.size}{also} "
        f"(95 %: fewer than {100 * largest_share(first.num_photographs):.1f} % of such photographs have one). "
        f"{_NOT_LOOKED_FOR}"
    )


def too_few_for_clean(num_photographs: int) -> str:
    """Why so many photographs without an outlier token are not `clean`."""
    bound = 100 * largest_share(num_photographs)
    return (
        f"{TOO_FEW}: {num_photographs} photographs without an outlier token leave it open whether there are none "
        f"(95 %: up to {bound:.0f} % of such photographs may have one). {MIN_CLEAN} would do: give more with "
        "`--dataset` and `--num-images`."
    )


def hint_of_outliers(look: Look) -> str:
    """Why photographs whose norms are nearly two populations are not `clean`."""
    return (
        f"{TOO_FEW}: the norms of {look.num_photographs} photographs at {look.size} hint at outliers, without showing "
        f"them. {2 * look.num_photographs} would do: give more with `--dataset` and `--num-images`."
    )


def too_few_for_fixed(*, num_photographs: int, verified: int, with_outliers: int) -> str | None:
    """Why so many photographs are not enough for `fixed`, and how many would do; `None` where they are.

    Args:
        num_photographs: in all.
        verified: of those, how many the verdict rests on.
        with_outliers: of those that verified, how many have an outlier token in the base model.
    """
    if num_photographs < MIN_TO_FIX:
        what, enough = f"{num_photographs} photographs, {verified} of them to verify with", MIN_TO_FIX
    elif verified < MIN_VERIFIED:
        what, enough = f"{verified} photographs to verify with", math.ceil(num_photographs * MIN_VERIFIED / verified)
    elif with_outliers < MIN_WITH_OUTLIERS:
        what = f"{with_outliers} of {verified} photographs to verify with have an outlier token"
        enough = _enough(with_outliers / verified)
    else:
        return None
    return (
        f"{TOO_FEW}: {what}; `fixed` needs {MIN_TO_FIX}, {MIN_VERIFIED} of them to verify with, of which "
        f"{MIN_WITH_OUTLIERS} have an outlier token. About {max(enough, MIN_TO_FIX)} would do: give more with "
        "`--dataset` and `--num-images`."
    )


def none_held_out(share_with_outliers: float) -> str:
    """Why nothing was shown, where no photograph that was held out has an outlier token.

    Args:
        share_with_outliers: of the photographs that were inspected.
    """
    return (
        f"{TOO_FEW}: none of the photographs that were held out to verify with has an outlier token. About "
        f"{_enough(share_with_outliers)} would do: give more with `--dataset` and `--num-images`."
    )


def _enough(share_with_outliers: float) -> int:
    """Photographs of which an eighth holds, on average, eight with an outlier token."""
    return math.ceil(8 * MIN_VERIFIED / max(share_with_outliers, 0.01))
