"""The script that describes a new family finds the lines of known ones, and gives a reason where there is none."""

import pytest
from benchmarks.tiny_models import NotAFamily, run_tiny, tiny_model
from find_family import find_family, line, why_not

from ttreg_hf.known.refusals import REFUSED
from ttreg_hf.modeling.families import FAMILIES, Family


@pytest.mark.parametrize("model_type", ["vit", "deit", "clip_vision_model", "dinov2", "dinov3_vit"])
def test_the_line_of_a_known_family_is_found_without_it(model_type, monkeypatch):
    known = FAMILIES[model_type]
    monkeypatch.delitem(FAMILIES, model_type)
    found = find_family(model_type)
    assert (found.blocks, found.prefix, found.mask) == (known.blocks, known.prefix, known.mask)
    assert model_type not in FAMILIES  # a trial leaves nothing behind
    assert eval(line(model_type, found).strip().rstrip(",").partition(": ")[2], {"Family": Family}) == found


@pytest.mark.parametrize(
    ("model_type", "why"), [("beit", REFUSED["beit"]), ("no_such", "has no model type 'no_such'")]
)
def test_what_is_no_family_says_why(model_type, why):
    with pytest.raises(NotAFamily) as raised:
        find_family(model_type)
    assert why in str(raised.value)


def test_a_wrong_line_does_not_pass():
    model = tiny_model("deit")
    assert why_not("deit", model, FAMILIES["deit"]) is None
    assert why_not("deit", model, Family("layers", prefix=(3,))) is not None
    assert "stops" in why_not("deit", model, Family("no_such_blocks"))


def test_a_tiny_model_is_the_same_each_time_and_reads_padding():
    one, other = (run_tiny(tiny_model("vit")).last_hidden_state for _ in range(2))
    assert one.equal(other)
    assert not one.equal(run_tiny(tiny_model("vit"), padding=9.0).last_hidden_state)
