"""Does moving these neurons take the outliers away, and leave the features alone?

Letters: `L` blocks, `B` images, `T` tokens, `D` channels of the pooled feature.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.batch_limit import BatchLimit
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.recording import Recorder
from ttreg_hf.families import inner_layout

FIXED, CLEAN, UNRESOLVED = "fixed", "clean", "unresolved"


@dataclass(frozen=True)
class Verification:
    """A base model and its patched twin on the same images.

    Args:
        num_images: images compared.
        in_sample: whether these images were also used to find the neurons.
        outlier_fraction_before: share of the base model's patches above the threshold, at the detection block.
        outlier_fraction_after: share of the patched model's.
        max_norm_before: largest patch norm of each block's output, base model.
        max_norm_after: the same of the patched model.
        register_norm: mean norm of the test-time registers at the detection block.
        feature_similarity: mean cosine between the pooled features of the two.
        min_feature_similarity: the smallest.
    """

    num_images: int
    in_sample: bool
    outlier_fraction_before: float
    outlier_fraction_after: float
    max_norm_before: tuple[float, ...]
    max_norm_after: tuple[float, ...]
    register_norm: float
    feature_similarity: float
    min_feature_similarity: float

    @property
    def outlier_ratio(self) -> float:
        """Outliers after / before; 1 where there were none, because then nothing was shown to work."""
        return self.outlier_fraction_after / self.outlier_fraction_before if self.outlier_fraction_before else 1.0


@dataclass(frozen=True)
class Measured:
    """One model on the images: outliers at the detection block, largest norms, and the pooled features."""

    num_images: int
    outlier_fraction: float
    max_norm_L: Tensor
    register_norm: float
    features_BD: Tensor


def measure(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    detection_layer: int,
    norm_threshold: float,
    limit: BatchLimit | None = None,
) -> Measured:
    """Run a model, stock or patched, over the images, at most as many at once as a limit allows."""
    limit = limit or BatchLimit()
    layout = inner_layout(model)
    outliers, patches, features, maxima, registers = [], 0, [], [], []
    with Recorder(model) as recorder:
        for _, recording in (part for batch in batches for part in limit.record(recorder, batch)):
            norms_LBN = recording.norms_LBT[:, :, layout.patches]
            outliers.append((norms_LBN[detection_layer] > norm_threshold).sum())
            patches += norms_LBN[detection_layer].numel()
            maxima.append(norms_LBN.amax((1, 2)))
            registers.append(recording.norms_LBT[detection_layer, :, layout.registers])
            if recording.feature_BD is not None:
                features.append(recording.feature_BD)
    register_norms = torch.cat(registers)
    return Measured(
        num_images=len(register_norms),
        outlier_fraction=float(torch.stack(outliers).sum()) / patches,
        max_norm_L=torch.stack(maxima).amax(0),
        register_norm=float(register_norms.mean()) if register_norms.numel() else 0.0,
        features_BD=torch.cat(features),
    )


def compare(before: Measured, after: Measured, *, in_sample: bool) -> Verification:
    """What patching changed."""
    similarity_B = torch.nn.functional.cosine_similarity(before.features_BD, after.features_BD, dim=-1)
    return Verification(
        num_images=before.num_images,
        in_sample=in_sample,
        outlier_fraction_before=before.outlier_fraction,
        outlier_fraction_after=after.outlier_fraction,
        max_norm_before=tuple(before.max_norm_L.tolist()),
        max_norm_after=tuple(after.max_norm_L.tolist()),
        register_norm=after.register_norm,
        feature_similarity=float(similarity_B.mean()),
        min_feature_similarity=float(similarity_B.min()),
    )


def verdict_of(verification: Verification, gate: GateConfig) -> str:
    """`fixed` if the outliers are gone and the features stayed, else `unresolved`."""
    outliers_gone = verification.outlier_ratio <= gate.max_outlier_ratio
    features_stayed = verification.feature_similarity >= gate.min_feature_similarity
    return FIXED if outliers_gone and features_stayed else UNRESOLVED
