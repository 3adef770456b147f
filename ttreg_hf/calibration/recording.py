"""Records what a forward pass makes of some images: norms of every block's output, activations of some layers.

Measuring is hooks; they are there only while the recorder is open. Everything stays on the model's device.

Letters: `L` blocks, `B` images, `T` tokens (as the blocks see them, test-time registers included), `F` neurons.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.families import blocks_of, image_inputs, trunk_of, trunk_output_layout
from ttreg_hf.modeling.test_time_registers import TokenLayout
from ttreg_hf.modeling.ttreg_base import down_projection


@dataclass(frozen=True)
class Recording:
    """One batch.

    Args:
        norms_LBT: L2 norm over channels of the raw output of each block asked for, float32.
        acts_by_layer: inputs of the down projection of the recorded layers, `(B, T, F)`, in the model's dtype.
        feature_BD: the trunk's pooled feature, or where it has none CLS, or the mean patch of a model without CLS;
            float32. `None` if not all blocks ran.
        embedding_norms_BT: L2 norm over channels of what the first block reads, float32.
    """

    norms_LBT: Tensor
    acts_by_layer: dict[int, Tensor]
    feature_BD: Tensor | None
    embedding_norms_BT: Tensor

    def of(self, images: slice) -> "Recording":
        """The same of some of the images."""
        return Recording(
            self.norms_LBT[:, images],
            {layer: acts_BTF[images] for layer, acts_BTF in self.acts_by_layer.items()},
            None if self.feature_BD is None else self.feature_BD[images],
            self.embedding_norms_BT[images],
        )


class _Enough(Exception):
    """Ends a forward pass after the last block that is needed."""


class Recorder:
    """`with Recorder(model, layers) as recorder: recording = recorder(pixel_values)`.

    Args:
        model: stock or patched.
        layers: whose activations are recorded.
        norm_layers: whose norms are recorded, in order; all by default.
        stop_after: last block that runs; all by default.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Iterable[int] = (),
        *,
        norm_layers: Iterable[int] | None = None,
        stop_after: int | None = None,
    ) -> None:
        self._model, self._trunk = model, trunk_of(model)
        self._blocks = blocks_of(model)
        self._projections = {layer: down_projection(self._blocks[layer]) for layer in layers}
        self._norm_layers = list(range(len(self._blocks)) if norm_layers is None else norm_layers)
        self._stop_after = stop_after
        self._norms: dict[int, Tensor] = {}
        self._embedding_norms: list[Tensor] = []
        self._acts: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Recorder":
        self._handles.append(self._blocks[0].register_forward_pre_hook(self._record_embeddings, with_kwargs=True))
        for layer in self._norm_layers:
            # before the hook of a patched model that takes the registers out after the last block
            hook = self._norm_hook(layer)
            self._handles.append(self._blocks[layer].register_forward_hook(hook, prepend=True))
        for layer, projection in self._projections.items():
            self._handles.append(projection.register_forward_pre_hook(self._act_hook(layer)))
        if self._stop_after is not None and self._stop_after < len(self._blocks) - 1:
            self._handles.append(self._blocks[self._stop_after].register_forward_hook(_stop))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Recording:
        feature_BD = None
        try:
            outputs = self._trunk(**image_inputs(self._model, pixel_values))
            feature_BD = _pooled_feature(outputs, trunk_output_layout(self._model))
        except _Enough:
            pass
        finally:  # nothing is kept alive here, after a failure neither
            norms, acts, embeddings = self._norms, self._acts, self._embedding_norms
            self._norms, self._acts, self._embedding_norms = {}, {}, []
        return Recording(torch.stack(list(norms.values())), acts, feature_BD, embeddings[0])

    def _record_embeddings(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._embedding_norms.append(_norms(args[0] if args else kwargs["hidden_states"]))

    def _norm_hook(self, layer: int) -> Any:
        def record(module: Any, args: Any, output: Any) -> None:
            hidden_states = output[0] if isinstance(output, tuple) else output
            self._norms[layer] = _norms(hidden_states)

        return record

    def _act_hook(self, layer: int) -> Any:
        def record(module: Any, args: Any) -> None:
            self._acts[layer] = args[0]

        return record


def _norms(hidden_states: Tensor) -> Tensor:
    return torch.linalg.vector_norm(hidden_states, dim=-1, dtype=torch.float32)


def _stop(module: Any, args: Any, output: Any) -> None:
    raise _Enough


def _pooled_feature(outputs: Any, layout: TokenLayout) -> Tensor:
    pooled = outputs.get("pooler_output")
    if pooled is None and "feature_maps" in outputs:
        pooled = outputs["feature_maps"][-1].flatten(2).mean(2)
    if pooled is None:
        tokens = outputs["last_hidden_state"]
        pooled = tokens[:, layout.prefix][:, 0] if layout.num_prefix_tokens else tokens[:, layout.patches].mean(1)
    return pooled.float()
