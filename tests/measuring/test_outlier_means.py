"""The mean magnitude over outlier tokens, in plain PyTorch and in the Triton kernel."""

import pytest
import torch
from torch import Tensor

from ttreg_hf.measuring.outlier_means import outlier_means

B, T, F = 5, 37, 700


def _acts(*, dtype: torch.dtype, device: str, form: str) -> Tensor:
    """`(B, T, F)`, stored in order, or as views of something larger or turned."""
    random = torch.Generator().manual_seed(0)
    larger = (5 * torch.randn(B, T + 3, F + 9, generator=random)).to(device, dtype)
    acts = larger[:, 2 : T + 2, 4 : F + 4]
    if form == "in order":
        return acts.contiguous()
    return acts.transpose(1, 2).contiguous().transpose(1, 2) if form == "turned" else acts


def _outliers(device: str) -> Tensor:
    outliers = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.2
    outliers[3] = False
    outliers[4] = True
    return outliers.to(device)


def _by_hand(acts_BTF: Tensor, outliers_BT: Tensor) -> Tensor:
    means = torch.zeros(B, F, dtype=torch.float64)
    for image in range(B):
        tokens = [token for token in range(T) if outliers_BT[image, token]]
        for token in tokens:
            means[image] += acts_BTF[image, token].cpu().double().abs() / len(tokens)
    return means


@pytest.mark.parametrize("form", ["in order", "a view", "turned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_means_equal_a_loop(device, dtype, form):
    acts, outliers = _acts(dtype=dtype, device=device, form=form), _outliers(device)
    two = list(outlier_means([acts, -acts], outliers))
    for means in two:
        torch.testing.assert_close(means.cpu().double(), _by_hand(acts, outliers), rtol=1e-6, atol=1e-6)
    assert not two[0][3].any()


@pytest.mark.gpu
@pytest.mark.parametrize("turned", [False, True])
def test_outliers_may_be_stored_in_any_order(turned):
    acts, outliers = _acts(dtype=torch.bfloat16, device="cuda", form="a view"), _outliers("cuda")
    stored = outliers.T.contiguous().T if turned else outliers
    (means,) = outlier_means([acts], stored)
    torch.testing.assert_close(means.cpu().double(), _by_hand(acts, outliers), rtol=1e-6, atol=1e-6)
