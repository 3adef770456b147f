"""Calibrations that are not about the last stage: it looks at few images and draws few controls."""

import pytest

from ttreg_hf.calibration import controls, rounds
from ttreg_hf.calibration.settings import VERIFY


def verify_briefly(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controls, "RANDOM_DRAWS", 2)
    patch.setitem(rounds._MOST_IMAGES, VERIFY, 6)
