"""How a planted model is told from a real one, wherever its pictures are shown."""

from transformers import PreTrainedModel

PLANTED_NOTE = "Planted toy ViT: it shows the mechanism, not the benefit."
_FIELD = "planted_by_ttreg_hf"  # of the config, which is saved with the model and kept when it is patched


def mark_as_planted(model: PreTrainedModel) -> None:
    """Leave a field in the model's config."""
    setattr(model.config, _FIELD, True)


def planted_note(model: PreTrainedModel) -> str:
    """`PLANTED_NOTE` for a planted model, stock or patched; empty for any other."""
    return PLANTED_NOTE if getattr(model.config, _FIELD, False) is True else ""
