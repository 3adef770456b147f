"""Repositories that hold no weights: they fetch the base model's, refuse others, and get newer code."""

import torch
from safetensors.torch import load

from .publisher import run


def test_constants_of_a_repository_without_weights_are_a_small_file_of_their_own(hub, home, planted):
    source = """
from transformers import AutoModel, Dinov2Model
from ttreg_hf import add_test_time_registers, from_pretrained
from ttreg_hf.publishing.checkpoint import save_checkpoint

pixel_values = torch.load("pixel_values.pt")
commit = Dinov2Model.from_pretrained("base").push_to_hub("org/base").oid
base = AutoModel.from_pretrained("org/base", revision=commit)
neurons = AutoModel.from_pretrained("checkpoint").config.register_neurons
rows = torch.randn(2, base.config.hidden_size, generator=torch.Generator().manual_seed(1))
options = dict(test_time_register_mode="constant", constants=rows, base_model_revision=commit)
patched = add_test_time_registers(base, neurons, **options)
save_checkpoint(patched, "small")
push_checkpoint("small", "org/small", config_only=True)
with torch.no_grad():
    expected = patched.eval()(pixel_values).last_hidden_state
    loaded = from_pretrained("org/small")
    report["difference"] = float((loaded(pixel_values).last_hidden_state - expected).abs().max())
    report["mode"] = loaded.config.test_time_register_mode
save_checkpoint(add_test_time_registers(base, neurons, base_model_revision=commit), "token")
push_checkpoint("token", "org/small", config_only=True)
"""
    planted.model.save_pretrained(home / "base")
    torch.save(planted.sample[:2], home / "pixel_values.pt")
    told = run(hub, source, home, token=hub.token)
    assert told["mode"] == "constant"
    assert told["difference"] < 1e-6
    first, second = (commit.oid for commit in hub.commits("org/small") if commit.title.startswith("Publish"))
    files = {commit: hub.files("org/small", commit) for commit in (first, second)}
    (small,) = (held for held in files.values() if "test_time_register_constants.safetensors" in held)
    assert "model.safetensors" not in small
    (rows,) = load(small["test_time_register_constants.safetensors"]).values()
    assert rows.shape == (2, planted.model.config.hidden_size)
    assert "There is no extra token: from block" in small["README.md"].decode()
    assert "test_time_register_constants.safetensors" not in hub.files("org/small")  # with a token it is gone


def test_repositories_without_weights_fetch_the_base_models_and_refuse_others(hub, home, planted):
    source = """
from transformers import AutoModel, Dinov2Model
from ttreg_hf import add_test_time_registers, from_pretrained
from ttreg_hf.loading import commit_of
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.publishing.code_sync import sync_code

pixel_values = torch.load("pixel_values.pt")
local = AutoModel.from_pretrained("checkpoint")
neurons = local.config.register_neurons
report["no_base"] = outcome(push_checkpoint, "checkpoint", "org/small", config_only=True)

base = Dinov2Model.from_pretrained("base")
commit = base.push_to_hub("org/base").oid
card = ModelCard("---\\nlicense: other\\nlicense_name: strict\\nlicense_link: LICENSE.md\\n---\\n")
api.upload_file(repo_id="org/base", path_in_repo="README.md", path_or_fileobj=str(card).encode())
with torch.no_grad():
    base.layernorm.weight.mul_(1.5)
other = base.push_to_hub("org/base").oid

base = AutoModel.from_pretrained("org/base", revision=commit)
report["commits"] = [commit_of("org/base", revision=commit), commit_of("org/base"), commit_of("base")]
report["other"] = other
report["pinned"] = commit
for name, revision in (("branch", "main"), ("small", commit), ("wrong", other)):
    patched = add_test_time_registers(base, neurons, base_model_revision=revision)
    save_checkpoint(patched, name)
report["branch"] = outcome(push_checkpoint, "branch", "org/small", config_only=True)
full = push_checkpoint("small", "org/small", config_only=False)
report["full_notes"] = full.notes
small = push_checkpoint("small", "org/small")
report["small_notes"] = small.notes
push_checkpoint("wrong", "org/wrong", config_only=True)

with torch.no_grad():
    expected = local(pixel_values).last_hidden_state
    for name, revision in (("of_full", full.commit.oid), ("of_small", small.commit.oid), ("of_main", None)):
        model = from_pretrained("org/small", revision=revision)
        assert not model.training
        report[name] = float((model(pixel_values).last_hidden_state - expected).abs().max())
report["dtype"] = str(from_pretrained("org/small", dtype="bfloat16").dtype)
report["wrong"] = outcome(from_pretrained, "org/wrong")
report["stock"] = outcome(from_pretrained, "org/base")
report["missing"] = outcome(from_pretrained, "org/nothing")

for path in ("registers.py", "handler.py", "train.py"):
    api.upload_file(repo_id="org/small", path_in_repo=path, path_or_fileobj=b"raise ImportError('old')")
with unittest.mock.patch("ttreg_hf.publishing.code_sync.check_outputs"):
    report["dry"] = sync_code("org/small", dry_run=True).changed
report["synced"] = sync_code("org/small").changed
report["again"] = sync_code("org/small").changed
outputs = pathlib.Path("small/expected_outputs.json").read_text().replace("0.", "3.")
for path, content in (("registers.py", "raise ImportError('old')"), ("expected_outputs.json", outputs)):
    api.upload_file(repo_id="org/small", path_in_repo=path, path_or_fileobj=content.encode())
report["unequal"] = outcome(sync_code, "org/small")
report["nowhere"] = outcome(sync_code, "org/nothing")
"""
    planted.model.save_pretrained(home / "base")
    torch.save(planted.sample[:2], home / "pixel_values.pt")
    told = run(hub, source, home, token=hub.token)
    assert "needs a base model on the Hub, got a local one" in told["no_base"]
    assert "of 40 hexadecimal digits, but `base_model_revision` is 'main'" in told["branch"]
    assert "org/base has the licence 'other': see that it lets you publish its weights" in told["full_notes"]
    assert "no weights, because org/base has the licence 'other': strangers get them from there" in told["small_notes"]
    assert max(told[name] for name in ("of_full", "of_small", "of_main")) < 1e-6
    assert told["dtype"] == "torch.bfloat16"
    assert "ValueError: org/wrong belongs to weights with the SHA-256" in told["wrong"]
    assert "ValueError: org/base must hold a patched model" in told["stock"]
    assert "OSError: org/nothing is not" in told["missing"]
    assert told["dry"] == told["synced"] == ["registers.py"]
    assert told["again"] == []
    assert "must give the outputs that were recorded" in told["unequal"]
    assert "There must be a repository org/nothing" in told["nowhere"]

    small = next(commit.oid for commit in hub.commits("org/small") if commit.title.startswith("Publish"))
    files = hub.files("org/small", small)
    assert "base_weights.json" in files
    assert "model.safetensors" not in files
    card = files["README.md"].decode()
    for words in (
        "base_model_relation: adapter",
        "license: other",
        "license_name: strict",
        "license_link: https://huggingface.co/org/base/blob/main/LICENSE.md",
        "**This repository holds no weights**",
        told["pinned"],
    ):
        assert words in card
    now = hub.files("org/small")
    assert now["registers.py"] == b"raise ImportError('old')"  # the refused update changed nothing
    assert now["handler.py"] == now["train.py"] == b"raise ImportError('old')"  # the owner's, before and after
    assert told["commits"] == [told["pinned"], told["other"], None]
