"""What heads read of a stock trunk's outputs."""

from typing import Any

from families import Case
from torch import Tensor


def head_feature(case: Case, outputs: Any) -> Tensor:
    """A pooling head's output, else CLS, else the mean patch; `(B, D)`.

    Classifiers of ViT and DeiT read CLS: the pooling layer of their bare models is not theirs.
    """
    if outputs.get("pooler_output") is not None and case.family.model_type not in ("vit", "deit"):
        return outputs.pooler_output
    tokens = outputs.last_hidden_state
    return tokens[:, 0] if case.family.num_prefix_tokens else tokens.mean(1)
