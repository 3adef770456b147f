"""For calibrations that are not about the last stage: it looks at few images and draws few controls."""

import functools

from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import GateConfig

BRIEF = GateConfig(num_images=8, random_draws=2)
calibrate_briefly = functools.partial(calibrate, gate=BRIEF)
