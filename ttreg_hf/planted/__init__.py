"""Planted models: tiny random ViTs whose register neurons are known, because they were wired in.

`model` makes them, from the `parts` around the neurons and the `triggers` that fire them; `note` tells them from
others.
"""

from ttreg_hf.planted.model import TINY, PlantedModel, planted_model, synthetic_images
from ttreg_hf.planted.note import PLANTED_NOTE, planted_note

__all__ = ["PLANTED_NOTE", "TINY", "PlantedModel", "planted_model", "planted_note", "synthetic_images"]
