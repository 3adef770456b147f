"""For calibrations that are not about the last stage: few images, few controls, no rows of constant mode."""

import functools

from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import GateConfig

BRIEF = GateConfig(num_images=8, random_draws=2, constant_mode=False)
calibrate_briefly = functools.partial(calibrate, gate=BRIEF)
