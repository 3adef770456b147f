"""`patched.push_to_hub`, known before all that publishing needs is imported."""

from typing import Any

from ttreg_hf.modeling.ttreg_base import TTRegModelMixin


def register_push_to_hub() -> None:
    """Let `patched.push_to_hub` publish complete checkpoints where ttreg_hf is installed."""
    TTRegModelMixin.push_to_hub = _push_to_hub


def _push_to_hub(model: TTRegModelMixin, repo_id: str, **options: Any) -> Any:
    """As `PreTrainedModel.push_to_hub`, and with card, processor and verification: see `ttreg_hf.hub`."""
    from ttreg_hf.hub import push_patched_model

    return push_patched_model(model, repo_id, **options)
