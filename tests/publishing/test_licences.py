"""Whose weights are published: those with a permissive licence, and others only where somebody asks for it."""

import pytest

from ttreg_hf.publishing.base_repository import PERMISSIVE, BaseRepository

from .publisher import run

BASES = {  # name: licence on its card, whether it is gated, and whether its weights are published unasked
    "permissive": ("apache-2.0", False, True),
    "share": ("cc-by-nc-4.0", False, False),
    "strict": ("other", False, False),
    "nothing": (None, False, False),
    "gated": ("mit", True, False),
}


@pytest.mark.parametrize("name", ["cc-by-nc-4.0", "cc-by-nd-4.0", "gpl-3.0", "openrail", "other", "unknown", None])
def test_other_licences_are_not_permissive(name):
    assert not BaseRepository("org/base", licence={} if name is None else {"license": name}).allows_copies


@pytest.mark.parametrize("name", sorted(PERMISSIVE))
def test_a_gate_closes_permissive_licences_too(name):
    assert BaseRepository("org/base", licence={"license": name}).allows_copies
    assert not BaseRepository("org/base", licence={"license": name}, is_gated=True).allows_copies


def test_weights_follow_the_base_models_licence_and_gate(hub, home, planted):
    planted.model.save_pretrained(home / "base")
    files = {path.name: path.read_bytes() for path in (home / "base").iterdir()}
    commits = {}
    for name, (licence, is_gated, _) in BASES.items():
        card = "" if licence is None else f"---\nlicense: {licence}\n---\n"
        texts = {"README.md": card.encode(), "LICENSE.md": b"terms", "NOTICE": b"notice", "licences.py": b"no"}
        commits[name] = hub.add_repository(f"org/{name}", {**files, **texts}, gated=is_gated)
    source = f"""
from transformers import Dinov2Model
from ttreg_hf import add_test_time_registers
from ttreg_hf.publishing.checkpoint import save_checkpoint

neurons = json.loads(pathlib.Path("checkpoint/config.json").read_text())["register_neurons"]
for name, commit in {commits!r}.items():
    base = Dinov2Model.from_pretrained(f"org/{{name}}", revision=commit)
    save_checkpoint(add_test_time_registers(base, neurons, base_model_revision=commit), name)
    report[name] = push_checkpoint(name, f"org/{{name}}-ttreg").notes
    dry = push_checkpoint(name, f"org/{{name}}-ttreg", dry_run=True)
    report[f"{{name}} dry"] = "model.safetensors" in dry.sizes
report["asked"] = ttreg("push", "gated", "org/gated-copy", "--full-weights")
report["asked not"] = ttreg("push", "permissive", "org/permissive-config", "--config-only")
direct = add_test_time_registers(base, neurons, base_model_revision={commits["gated"]!r})
direct.push_to_hub("org/direct")
save_checkpoint(add_test_time_registers(base, neurons), "unpinned")
report["unpinned"] = outcome(push_checkpoint, "unpinned", "org/unpinned")
base.config._name_or_path = base.name_or_path = "org/gone"
save_checkpoint(add_test_time_registers(base, neurons), "gone")
report["gone"] = outcome(push_checkpoint, "gone", "org/gone-ttreg")
report["gone copy"] = outcome(push_checkpoint, "gone", "org/gone-ttreg", config_only=False)
"""
    told = run(hub, source, home, token=hub.token)
    for name, (licence, is_gated, is_copied) in BASES.items():
        now = hub.files(f"org/{name}-ttreg")
        assert ("model.safetensors" in now) is told[f"{name} dry"] is is_copied, name
        assert ("base_weights.json" in now) is not is_copied
        assert ({"LICENSE.md", "NOTICE"} <= now.keys()) is is_copied
        assert "licences.py" not in now
        card = now["README.md"].decode()
        assert (f"license: {licence}\n" in card) is ((licence is not None and not is_gated) or name == "gated")
        assert ("**The base model is gated**" in card) is is_gated
        assert any("no weights, because" in note for note in told[name]) is not is_copied
    copy = hub.files("org/gated-copy")
    assert told["asked"]["code"] == told["asked not"]["code"] == 0
    assert {"model.safetensors", "LICENSE.md", "NOTICE"} <= copy.keys()
    assert "**The base model is gated**" in copy["README.md"].decode()
    assert "(LICENSE.md)" in copy["README.md"].decode()
    assert "org/gated is gated: see that it lets you publish its weights" in told["asked"]["out"]
    assert "model.safetensors" not in hub.files("org/permissive-config").keys() | hub.files("org/direct").keys()
    assert "(org/gated is gated, so that it is the default) needs the base model's commit" in told["unpinned"]
    assert "org/gone is not on the Hub, or not for you. `--full-weights`" in told["gone"]
    assert told["gone copy"] == "done"
    _strangers_are_told_how_to_get_in(hub, home)


def _strangers_are_told_how_to_get_in(hub, home):
    """With a cache of their own, and an account that the gate does not let in, or none."""
    source = f"""
from ttreg_hf import from_pretrained
from ttreg_hf.loading import load_model
for name, token in (("stranger", {hub.stranger_token!r}), ("anonymous", False)):
    report[name] = outcome(from_pretrained, "org/gated-ttreg", token=token)
    report[f"{{name}} base"] = outcome(load_model, "org/gated", token=token)
report["inspect"] = ttreg("inspect", "org/gated", "--token", {hub.stranger_token!r})
"""
    told = run(hub, source, home / "elsewhere")
    way_in = f"org/gated is gated. Accept its terms at {hub.url}/org/gated, log in with `hf auth login`"
    for name in ("stranger", "anonymous"):
        assert told[name].startswith("PermissionError: org/gated-ttreg holds no weights, and its base model org/gated")
        assert way_in in told[name]
        assert told[f"{name} base"].startswith(f"PermissionError: {way_in}")
    assert told["inspect"]["code"] == 1
    errors = [line for line in told["inspect"]["err"].splitlines() if not line.endswith(" ...")]
    assert len(errors) == 1  # beside lines that say what takes long
    assert errors[0].startswith(f"ttreg: error: {way_in}")
