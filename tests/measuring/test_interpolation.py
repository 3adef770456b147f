"""Outlier patches read as the mean of their ordinary neighbours."""

import pytest
import torch

from ttreg_hf.measuring.image_maps import MapRecorder
from ttreg_hf.measuring.interpolation import interpolate_outliers
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.recorder import STATES, Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images

DETECTION = 4


def _interpolated(values, outliers):
    maps = torch.tensor(values, dtype=torch.float32)[None, None]
    return interpolate_outliers(maps, torch.tensor(outliers, dtype=torch.bool)[None])[0, 0]


def test_an_outlier_becomes_the_mean_of_its_eight_neighbours():
    found = _interpolated([[1, 2, 3], [4, 900, 6], [7, 8, 9]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert found.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_neighbours_that_are_outliers_do_not_count_and_the_border_has_none_beyond():
    found = _interpolated([[900, 800, 3], [4, 5, 6]], [[1, 1, 0], [0, 0, 0]])
    assert found.tolist() == [[4.5, 4.5, 3], [4, 5, 6]]


def test_the_square_grows_until_an_ordinary_patch_is_in_it_and_no_further():
    row = [[1, 8, 700, 700, 700, 2, 50]]
    assert _interpolated(row, [[0, 0, 1, 1, 1, 0, 0]]).tolist() == [[1, 8, 8, 5, 2, 2, 50]]


def test_an_image_of_outliers_alone_stays_and_values_need_not_be_finite():
    assert _interpolated([[7.0, 8.0]], [[1, 1]]).tolist() == [[7, 8]]
    assert _interpolated([[float("inf"), 8.0]], [[1, 0]]).tolist() == [[8, 8]]


def test_batches_equal_singles_whatever_the_other_images_need():
    random = torch.Generator().manual_seed(0)
    maps, outliers = torch.randn(5, 7, 6, 4, generator=random), torch.rand(5, 6, 4, generator=random) < 0.6
    outliers[0], outliers[1] = False, True
    outliers[2], outliers[2, 0, 0] = True, False
    together = interpolate_outliers(maps, outliers)
    for image in range(5):
        alone = interpolate_outliers(maps[image : image + 1], outliers[image : image + 1])[0]
        torch.testing.assert_close(together[image], alone)
    assert torch.equal(together[0], maps[0])


@pytest.fixture(scope="module", params=["dinov2", "dinov2_with_registers", "siglip_vision_model"])
def planted(request):
    return planted_model(request.param)


def _recordings(planted, images, threshold=None):
    tower = VisionTower.to_measure(planted.model, attention="eager")
    wanted = [(state, 5) for state in STATES]
    rule = OutlierRule(DETECTION, planted.norm_threshold if threshold is None else threshold)
    settings = {"norm_layers": [5], "states": wanted, "attention_layers": [5], "patches": True}
    with Recorder(tower, **settings) as plain:
        before = plain(images)
    with Recorder(tower, interpolate=rule, **settings) as recorder:
        after = recorder(images)
    with Recorder(tower, norm_layers=[DETECTION]) as norms:
        outliers_BT = norms(images).norms_LBT[0] > rule.norm_threshold
    outliers_BT[:, tower.layout.prefix] = False
    return before, after, outliers_BT, tower.layout


def test_everything_that_is_read_of_planted_outliers_is_mended_and_nothing_else(planted):
    before, after, outliers_BT, layout = _recordings(planted, synthetic_images(3))
    assert outliers_BT.any(dim=1).all()
    for name, states_BTD in before.states.items():
        changed_BT = (after.states[name] != states_BTD).any(-1)
        assert torch.equal(changed_BT, outliers_BT), name
    given_to_BT = (after.attentions[5] != before.attentions[5]).any(1)
    assert torch.equal(given_to_BT, outliers_BT)
    changed_Bhw = (after.patches_BDhw != before.patches_BDhw).any(1)
    assert torch.equal(changed_Bhw.flatten(1), outliers_BT[:, layout.patches])
    assert torch.equal(after.norms_LBT, before.norms_LBT)
    assert torch.equal(after.feature_BD, before.feature_BD)


def test_the_planted_norm_and_the_sink_are_gone_from_what_is_read(planted):
    before, after, outliers_BT, layout = _recordings(planted, synthetic_images(3))
    norms_before, norms_after = (each.states["out", 5].norm(dim=-1) for each in (before, after))
    ordinary = ~outliers_BT
    ordinary[:, layout.prefix] = False
    assert norms_before[outliers_BT].min() > norms_before[ordinary].max()
    assert norms_after[outliers_BT].max() <= norms_before[ordinary].max()
    on_before, on_after = (each.attentions[5].mean(1) for each in (before, after))
    assert on_before[outliers_BT].mean() > 5 * on_before[ordinary].mean()
    assert on_after[outliers_BT].max() <= on_before[ordinary].max()


def test_without_outliers_nothing_changes_by_a_bit(planted):
    """The largest norm is the threshold: only what is strictly above it is an outlier."""
    images = synthetic_images(2)
    with Recorder(VisionTower.to_measure(planted.model), norm_layers=[DETECTION]) as recorder:
        highest = float(recorder(images).norms_LBT.max())
    before, after, _, _ = _recordings(planted, images, threshold=highest)
    assert all(torch.equal(after.states[name], before.states[name]) for name in before.states)
    assert torch.equal(after.patches_BDhw, before.patches_BDhw)
    assert torch.equal(after.attentions[5], before.attentions[5])


def test_maps_of_images_are_mended_too(planted):
    images, rule = synthetic_images(2), OutlierRule(DETECTION, planted.norm_threshold)
    with MapRecorder(planted.model, detection_layer=DETECTION) as maps:
        before = maps(images)
    with MapRecorder(planted.model, detection_layer=DETECTION, interpolate=rule) as maps:
        after = maps(images)
    for one, other in zip(before, after, strict=True):
        outliers = one.patch_norms > planted.norm_threshold
        assert torch.equal(one.attention != other.attention, outliers)
        assert other.attention[outliers].max() < one.attention[outliers].min()
