"""Outliers hidden from attention, behind the detection block."""

import pytest
import torch
from families import BARE_CASES, NUM_PATCHES, images, inputs
from modeling.laws import mask_over_tokens
from torch import Tensor

from ttreg_hf.evaluation.masked_model import hidden_from, masked_model, why_not_masked
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images

DETECTION = 3
SIGLIP2 = next(case for case in BARE_CASES if case.family.name == "siglip2")


@pytest.fixture(scope="module", params=["dinov2", "dinov2_with_registers", "siglip_vision_model"])
def planted(request):
    return planted_model(request.param, neurons_per_layer={2: 2})


def _outliers(model, pixels, rule) -> Tensor:
    tower = VisionTower.to_measure(model)
    with Recorder(tower, norm_layers=[rule.detection_layer]) as recorder:
        return rule.above(recorder(pixels).norms_LBT[0], tower.layout)


def _attentions(model, pixels) -> dict[int, Tensor]:
    """As a task that needs maps runs it: a copy of the row's model, with eager attention."""
    with Recorder(VisionTower.to_measure(model, attention="eager"), attention_layers=range(6)) as recorder:
        return recorder(pixels).attentions


def test_no_token_attends_to_outliers_behind_the_detection_block_and_all_as_ever_up_to_it(planted):
    pixels, rule = synthetic_images(3), OutlierRule(DETECTION, planted.norm_threshold)
    outliers_BT = _outliers(planted.model, pixels, rule)
    before, after = _attentions(planted.model, pixels), _attentions(masked_model(planted.model, rule), pixels)
    assert outliers_BT.any(dim=1).all()
    for layer in range(6):
        mass_BT = after[layer].transpose(1, 2)[outliers_BT]  # (B, Q, T) -> outliers, what each token gives them
        if layer > DETECTION:
            assert (before[layer].transpose(1, 2)[outliers_BT] > 0).all()
            assert (mass_BT == 0).all()
            torch.testing.assert_close(after[layer].sum(-1), torch.ones(after[layer].shape[:2]))
        else:
            assert torch.equal(after[layer], before[layer])


def _states(model, pixels) -> Tensor:
    with Recorder(VisionTower.of(model), states=[("out", -1)]) as recorder:
        return recorder(pixels).states["out", 5]


def test_eager_and_sdpa_agree_and_other_implementations_become_sdpa(planted):
    pixels, rule = synthetic_images(3), OutlierRule(DETECTION, planted.norm_threshold)
    found = {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        tower = VisionTower.to_measure(planted.model, attention=implementation)
        masked = masked_model(tower.model, rule)
        found[implementation] = _states(masked, pixels)
        assert tower.trunk.config._attn_implementation == implementation
    torch.testing.assert_close(found["eager"], found["sdpa"], rtol=1e-4, atol=1e-4)
    assert torch.equal(found["flex_attention"], found["sdpa"])


def test_an_image_without_outliers_is_the_base_models_and_the_model_stays_as_it_was(planted):
    pixels, rule = synthetic_images(3), OutlierRule(DETECTION, planted.norm_threshold)
    base = VisionTower.to_measure(planted.model).model
    with Recorder(VisionTower.of(base), norm_layers=[DETECTION]) as recorder:
        highest = OutlierRule(DETECTION, float(recorder(pixels).norms_LBT.max()))
    before = _states(base, pixels)
    assert torch.equal(_states(masked_model(base, highest), pixels), before)  # strictly above
    assert not torch.equal(_states(masked_model(base, rule), pixels), before)
    assert torch.equal(_states(base, pixels), before)


def test_batches_equal_singles_with_and_without_outliers_among_them(planted):
    pixels = synthetic_images(4)
    pixels[1] = 0.5 * torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(1))
    rule = OutlierRule(DETECTION, planted.norm_threshold)
    counts = _outliers(planted.model, pixels, rule).sum(1)
    assert counts[1] == 0
    assert counts[0] > 0
    masked = masked_model(planted.model, rule)
    together = _states(masked, pixels)
    for image in range(4):
        alone = _states(masked, pixels[image : image + 1])[0]
        torch.testing.assert_close(together[image], alone, rtol=1e-4, atol=1e-4)


def test_a_pass_without_outliers_forgets_those_of_the_pass_before(planted):
    pixels, rule = synthetic_images(1), OutlierRule(DETECTION, planted.norm_threshold)
    plain = 0.5 * torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    masked = masked_model(planted.model, rule)
    before = _states(masked, plain)
    _states(masked, pixels)
    assert torch.equal(_states(masked, plain), before)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_family_is_masked_or_says_why_not(every_bare_case, attention):
    model = every_bare_case.stock_model(attention=attention)
    tower = VisionTower.of(model)
    why_not = why_not_masked(tower, 0)
    if why_not is not None:
        assert every_bare_case.family.name in ("blip", "blip_2", "instructblip")
        assert "takes no attention mask" in why_not
        return
    with Recorder(VisionTower.to_measure(model), norm_layers=[0]) as recorder:
        norms_BN = recorder(images()).norms_LBT[0][:, tower.layout.patches]
    rule = OutlierRule(0, float(norms_BN.median()))
    outliers_BT = _outliers(model, images(), rule)
    masked = VisionTower.to_measure(masked_model(model, rule), attention="eager")
    with Recorder(masked, attention_layers=[0, 1, 2]) as recorder:
        found = recorder(images()).attentions
    for layer in (1, 2):
        assert (found[layer].transpose(1, 2)[outliers_BT] == 0).all()
        torch.testing.assert_close(found[layer].sum(-1), torch.ones(found[layer].shape[:2]))
    assert (found[0].transpose(1, 2)[outliers_BT] > 0).all()


def test_prefix_tokens_are_never_hidden_and_alone_are_seen_where_all_patches_are_outliers(planted):
    pixels, prefix = synthetic_images(2), VisionTower.of(planted.model).layout.prefix
    before = _attentions(planted.model, pixels)
    after = _attentions(masked_model(planted.model, OutlierRule(DETECTION, 0.0)), pixels)
    if prefix.start == prefix.stop:  # nothing would be seen, so all are
        assert torch.equal(after[5], before[5])
    else:
        torch.testing.assert_close(after[5][..., prefix].sum(-1), torch.ones(after[5].shape[:2]))


def test_behind_the_last_block_nothing_attends(planted):
    assert "after block 5, the last" in why_not_masked(VisionTower.of(planted.model), 5)
    assert why_not_masked(VisionTower.of(planted.model), 4) is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_neither_counts_nor_comes_back(attention):
    """NaFlex: what padding holds changes nothing, and outliers alone beside padding are not hidden."""
    model = SIGLIP2.stock_model(attention=attention)
    given = inputs(model, images()) | mask_over_tokens(SIGLIP2)
    seen = given["pixel_attention_mask"].bool()
    for threshold in (0.0, None):
        with torch.no_grad():
            norms = model(**given, output_hidden_states=True).hidden_states[1].norm(dim=-1)
        rule = OutlierRule(0, float(norms[seen].median()) if threshold is None else threshold)
        masked = masked_model(model, rule)
        with torch.no_grad():
            found = masked(**given).last_hidden_state[seen]
            other = dict(given, pixel_values=torch.where(seen[..., None], given["pixel_values"], 50.0))
            torch.testing.assert_close(masked(**other).last_hidden_state[seen], found)
            base = model(**given).last_hidden_state[seen]
        assert found.isfinite().all()
        assert torch.allclose(found, base, atol=1e-5) == (threshold == 0.0)


def test_masks_of_every_form_are_kept_and_extended():
    hidden = torch.zeros(2, NUM_PATCHES, dtype=torch.bool)
    hidden[0, 3] = hidden[1, :-2] = True  # all of the second image but its padding
    seen = torch.ones(2, NUM_PATCHES, dtype=torch.bool)
    seen[:, -2:] = False
    boolean = seen[:, None, None].expand(-1, -1, NUM_PATCHES, -1)
    added = torch.zeros(boolean.shape).masked_fill(~boolean, float("-inf"))
    expected = boolean.clone()
    expected[0, ..., 3] = False  # nothing else is seen of the second image, so nothing is hidden
    assert torch.equal(hidden_from(boolean, hidden, seen, torch.float32), expected)
    assert torch.equal(hidden_from(added, hidden, seen, torch.float32) == 0, expected)
    hidden[1] = True
    made = hidden_from(None, hidden, None, torch.bfloat16)
    assert (made.dtype, made.shape) == (torch.bfloat16, (2, 1, 1, NUM_PATCHES))
    assert (made[:, 0, 0] < 0).nonzero().tolist() == [[0, 3]]
