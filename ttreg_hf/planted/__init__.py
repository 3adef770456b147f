"""Planted models: tiny random ViTs whose register neurons are known, because they were wired in.

`model` makes them, from the `parts` around the neurons and the `triggers` that fire them.
"""

from ttreg_hf.planted.model import TINY, PlantedModel, planted_model, synthetic_images

__all__ = ["TINY", "PlantedModel", "planted_model", "synthetic_images"]
