"""Planted models: tiny random ViTs whose register neurons are known, because they were wired in.

`model` makes them, from the `parts` around the neurons and the `triggers` that fire them. `kinds` lists models that
are hard to judge (`outliers` and `distractors` of other kinds), `truth` says what is right about each, and
`interventions` proves it.
"""

from ttreg_hf.planted.model import TINY, PlantedModel, planted_model, synthetic_images

__all__ = ["TINY", "PlantedModel", "planted_model", "synthetic_images"]
