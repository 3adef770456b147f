"""One model, stock or patched, on some images: outliers, norms and pooled features, image by image.

Letters: `L` blocks, `B` images, `T` tokens, `N` patches, `D` channels of the pooled feature.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.batch_limit import BatchLimit
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.norms import NormStatistics
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.calibration.patch_norms import PatchNorms
from ttreg_hf.calibration.recording import Recorder
from ttreg_hf.families import blocks_of, inner_layout


@dataclass(frozen=True)
class Measured:
    """What one model makes of the images.

    Args:
        outliers_BN: for each image, which of its patches are outliers, bool on the CPU.
        norms_BN: for each image, norms of its patches at the detection block, on the CPU.
        patch_norms: of every patch at every block.
        norms: of all patches, per block.
        register_norm: mean norm of the test-time registers at the detection block; 0 without them.
        features_BD: pooled features, float32 on the CPU.
    """

    outliers_BN: tuple[Tensor, ...]
    norms_BN: tuple[Tensor, ...]
    patch_norms: PatchNorms
    norms: NormStatistics
    register_norm: float
    features_BD: Tensor

    @property
    def num_images(self) -> int:
        return len(self.outliers_BN)

    @property
    def outliers_B(self) -> Tensor:
        """How many outliers each image has, float64."""
        return torch.stack([mask.sum() for mask in self.outliers_BN]).double()

    @property
    def outlier_fraction(self) -> float:
        """Share of all patches."""
        return float(self.outliers_B.sum()) / sum(mask.numel() for mask in self.outliers_BN)

    def similarity_to(self, base: "Measured") -> Tensor:
        """Cosine of each image's pooled feature to another model's, `(B,)` float64."""
        return torch.nn.functional.cosine_similarity(self.features_BD.double(), base.features_BD.double(), dim=-1)


def measure(
    model: PreTrainedModel, batches: Iterable[Batch], rule: OutlierRule, *, limit: BatchLimit | None = None
) -> Measured:
    """Run a model over the images, at most as many at once as a limit allows."""
    limit = limit or BatchLimit()
    layout = inner_layout(model)
    statistics = NormStatistics(len(blocks_of(model)), model.device)
    patch_norms = PatchNorms()
    outliers: list[Tensor] = []
    norms: list[Tensor] = []
    registers: list[Tensor] = []
    features: list[Tensor] = []
    with Recorder(model) as recorder:
        for _, recording in (part for batch in batches for part in limit.record(recorder, batch)):
            assert recording.feature_BD is not None  # all blocks ran
            norms_LBN = recording.norms_LBT[:, :, layout.patches]
            statistics.add(norms_LBN)
            patch_norms.add(recording.embedding_norms_BT[:, layout.patches], norms_LBN)
            outliers += rule.outliers(recording, layout, rule.detection_layer)[:, layout.patches].cpu()
            norms += norms_LBN[rule.detection_layer].cpu()
            registers.append(recording.norms_LBT[rule.detection_layer, :, layout.registers])
            features.append(recording.feature_BD.cpu())
    register_norms = torch.cat(registers)
    return Measured(
        outliers_BN=tuple(outliers),
        norms_BN=tuple(norms),
        patch_norms=patch_norms,
        norms=statistics,
        register_norm=float(register_norms.mean()) if register_norms.numel() else 0.0,
        features_BD=torch.cat(features),
    )
