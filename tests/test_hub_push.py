"""Publishing to the stand-in for the Hub: updates, refusals, and failures that leave everything as it was.

Each test is one child process that pushes many times; verification in a fresh interpreter is tested by
`test_checkpoint.py` and `test_hub_story.py`, and skipped here.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub

from ttreg_hf import CalibrationConfig, add_test_time_registers, calibrate
from ttreg_hf.checkpoint import save_checkpoint
from ttreg_hf.planted import planted_model

PRELUDE = """
import contextlib, io, json, pathlib, shutil, time, unittest.mock
import torch
import ttreg_hf
from huggingface_hub import HfApi, ModelCard
from ttreg_hf import hub
from ttreg_hf.cli import main
from ttreg_hf.committing import commit_files, look_at
from ttreg_hf.hub import push_checkpoint

torch.set_num_threads(1)
time.sleep = lambda seconds: None  # the client waits between its retries; nothing here needs it to
hub.verify_checkpoint = lambda directory: 0.0
api = HfApi()

def outcome(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (ValueError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def ttreg(*arguments):
    printed, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        code = main(list(arguments))
    return dict(code=code, out=printed.getvalue(), err=complained.getvalue())

report = {}
"""
POSTLUDE = "\npathlib.Path('report.json').write_text(json.dumps(report))\n"


@pytest.fixture(scope="module")
def planted():
    return planted_model("dinov2")


@pytest.fixture(scope="module")
def result(planted):
    settings = CalibrationConfig(num_images=16, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold)
    return calibrate(planted.model, planted.sample, config=settings)


@pytest.fixture
def hub(local_hub):
    yield local_hub
    assert local_hub.unknown_requests == []
    assert local_hub.faults_to_come == []


@pytest.fixture
def home(planted, result, tmp_path):
    """A working directory with `checkpoint`, and `unresolved`."""
    patched = add_test_time_registers(planted.model, result.register_neurons)
    save_checkpoint(patched, tmp_path / "home" / "checkpoint", calibration=result)
    unresolved = dataclasses.replace(result, verdict="unresolved")
    save_checkpoint(patched, tmp_path / "home" / "unresolved", calibration=unresolved)
    return tmp_path / "home"


def run(hub: LocalHub, source: str, home: Path, *, token: str | None = None) -> dict:
    printed = hub.run_python(PRELUDE + source + POSTLUDE, home, token=token)
    report = (home / "report.json").read_text(encoding="utf-8")
    assert hub.token not in printed + report
    return json.loads(report)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_failures_leave_the_hub_and_the_folder_as_they_were(hub, home):
    present = {"README.md": b"---\nlanguage: en\n---\n# Mine\n", "config.json": b"{}"}
    for repo in ("org/full", "org/busy"):
        hub.add_repository(repo, present)
    hub.add_repository("org/private", present, private=True)
    before = {repo: (hub.commits(repo), hub.refs(repo)) for repo in ("org/full", "org/busy", "org/private")}
    folder = snapshot(home / "checkpoint")
    hub.fail_next("POST", "org/full/commit/main", status=500)
    hub.drop_next("POST", "org/busy/commit/main")
    hub.drop_next("POST", "org/new/commit/main")
    hub.fail_next("POST", "org/branch/commit/trial", status=503)
    hub.fail_next("PUT", "/lfs/models/org/upload/", status=500, times=12)  # two files, six attempts each
    hub.fail_next("GET", "/api/models/org/unread/refs", status=502)
    hub.add_repository("org/branch", present)
    source = f"""
cases = dict(
    server_error=dict(repo_id="org/full"),
    connection=dict(repo_id="org/busy"),
    new_repository=dict(repo_id="org/new"),
    new_branch=dict(repo_id="org/branch", revision="trial"),
    upload=dict(repo_id="org/upload"),
    unread=dict(repo_id="org/unread"),
    anonymous=dict(repo_id="org/full", token=False),
    stranger=dict(repo_id="org/full", token={hub.stranger_token!r}),
    hidden=dict(repo_id="org/private", token={hub.stranger_token!r}),
    name=dict(repo_id="org/a--b"),
    proposal=dict(repo_id="org/full", tag="v1", create_pr=True),
    unresolved=dict(directory="unresolved", repo_id="org/full"),
)
for name, options in cases.items():
    report[name] = outcome(push_checkpoint, **(dict(directory="checkpoint", token={hub.token!r}) | options))
"""
    told = run(hub, source, home)
    unchanged = "The commit failed, and nothing was changed on the Hub."
    again = "Try again; files that have arrived are not sent twice."
    login = "Log in with `hf auth login`, or give a `--token` that may write there."
    for case in ("server_error", "connection", "new_repository", "new_branch", "upload"):
        assert unchanged in told[case]
        assert again in told[case]
    assert "RemoteProtocolError" in told["connection"]
    assert "HfHubHTTPError" in told["server_error"]
    assert "Error while uploading" in told["upload"]
    assert told["unread"].startswith("RuntimeError: org/unread could not be read. Got ")
    for case in ("anonymous", "stranger", "hidden"):
        assert told[case].endswith(login)
    assert "--" in told["name"]
    assert "`create_pr` only proposes one" in told["proposal"]
    assert "is unresolved. `--force` (`force=True`) publishes it all the same." in told["unresolved"]
    assert {repo: (hub.commits(repo), hub.refs(repo)) for repo in before} == before
    assert not any(map(hub.has_repository, ("org/new", "org/upload", "org/unread", "org/a--b")))
    assert hub.refs("org/branch").keys() == {"refs/heads/main"}
    assert snapshot(home / "checkpoint") == folder


def test_pushing_again_updates_what_is_ours_and_keeps_what_is_the_owners(hub, home):
    hub.fail_next("PUT", "/lfs/models/org/vit/", status=500)
    source = """
first = push_checkpoint("checkpoint", "org/vit", private=True)
again = push_checkpoint("checkpoint", "org/vit")
report["private"] = api.model_info("org/vit").private
report["changed"] = [first.changed, again.changed]

readme = ModelCard.load("org/vit")
readme.data.license = "mit"
readme.text += "\\nMy own words.\\n"
api.upload_file(repo_id="org/vit", path_in_repo="README.md", path_or_fileobj=str(readme).encode())
api.upload_file(repo_id="org/vit", path_in_repo="notes.md", path_or_fileobj=b"notes")
shutil.copytree("checkpoint", "changed")
for name in ("calibration.json", "calibration.safetensors"):
    pathlib.Path("changed", name).unlink()
pathlib.Path("changed/pictures").mkdir()
pathlib.Path("changed/pictures/cat.png").write_bytes(b"png")
with open("changed/README.md", "a") as file:
    file.write("\\nFrom the folder.\\n")
updated = push_checkpoint("changed", "org/vit", tag="v2", commit_message="Second")
report["notes"] = updated.notes
report["tag_again"] = outcome(push_checkpoint, "checkpoint", "org/vit", tag="v2")
proposal = push_checkpoint("checkpoint", "org/vit", create_pr=True)
report["pull_request"] = proposal.commit.pr_revision
branched = push_checkpoint("checkpoint", "org/vit", revision="trial")
target = look_at(api, "org/vit", None)
api.upload_file(repo_id="org/vit", path_in_repo="a.md", path_or_fileobj=b"a", commit_message="meanwhile")
report["overtaken"] = outcome(commit_files, api, target, {"b.md": b"b"}, message="too late")
report["own_name"] = push_checkpoint("changed", "mine").repo_id
"""
    told = run(hub, source, home, token=hub.token)
    assert told["private"]
    assert told["changed"] == [True, False]
    assert any("the folder's is not used" in note for note in told["notes"])
    assert any("no image processor" in note for note in told["notes"])
    assert "ValueError: `tag` must be new, but org/vit has 'v2' already." in told["tag_again"]
    titles = [commit.title for commit in hub.commits("org/vit")]
    assert (titles[:2], len(titles)) == (["meanwhile", "Second"], 6)  # and initial, first, two by hand
    assert "the branch has moved meanwhile" in told["overtaken"]
    assert "Somebody else has committed meanwhile" in told["overtaken"]
    files = hub.files("org/vit", "v2")
    card = files["README.md"].decode()
    assert "My own words." in card
    assert "From the folder." not in card
    assert "license: mit" in card
    assert '"org/vit", "v2"' in card
    assert "(pictures/cat.png)" in card
    assert "Nothing by ttreg_hf" in card
    assert {"notes.md", "pictures/cat.png", "model.safetensors"} <= files.keys()
    assert "calibration.json" not in files
    assert "calibration.json" in hub.files("org/vit", told["pull_request"])
    assert "calibration.json" in hub.files("org/vit", "trial")
    assert told["own_name"] == "user/mine"
    assert "From the folder." in hub.files("user/mine")["README.md"].decode()


def test_the_command_says_what_it_does_and_never_the_token(hub, home):
    hub.fail_next("POST", "org/broken/commit/main", status=500)
    source = f"""
secret = {hub.token!r}
pathlib.Path("bare").mkdir()
for path in pathlib.Path("checkpoint").iterdir():
    if path.name not in ("README.md", "calibration.json", "calibration.safetensors"):
        shutil.copy(path, "bare")
report["bare"] = ttreg("push", "bare", "org/vit", "--dry-run")
report["dry"] = ttreg("push", "checkpoint", "org/vit", "--dry-run")
report["refused"] = ttreg("push", "unresolved", "org/vit", "--token", secret)
report["failed"] = ttreg("push", "checkpoint", "org/broken", "--token", secret, "--debug")
report["anonymous"] = ttreg("push", "checkpoint", "org/vit")
report["missing"] = ttreg("push", "nowhere", "org/vit", "--token", secret)
report["pushed"] = ttreg("push", "checkpoint", "org/vit", "--token", secret)
report["forced"] = ttreg("push", "unresolved", "org/vit", "--token", secret, "--force", "--json")
report["synced"] = ttreg("sync-code", "org/vit", "--token", secret)
"""
    told = run(hub, source, home)
    codes = {name: entry["code"] for name, entry in told.items()}
    done = dict.fromkeys(("bare", "dry", "pushed", "forced", "synced"), 0)
    assert codes == done | {"refused": 3} | dict.fromkeys(("failed", "anonymous", "missing"), 1)
    assert "model.safetensors" in told["dry"]["out"]
    assert "README.md" in told["bare"]["out"]
    assert told["dry"]["out"].endswith("dry run: nothing was sent to org/vit\n")
    assert "the verdict of the calibration in unresolved is unresolved" in told["refused"]["err"]
    assert "nothing was changed on the Hub" in told["failed"]["err"]
    assert "hf auth login" in told["anonymous"]["err"]
    assert "nowhere has no config.json" in told["missing"]["err"]
    assert f"published  {hub.url}/org/vit/commit/{hub.commits('org/vit')[1].oid}" in told["pushed"]["out"]
    assert json.loads(told["forced"]["out"])["commit"] == hub.commits("org/vit")[0].oid
    assert told["synced"]["out"] == "org/vit has the installed code already\n"
    assert not hub.has_repository("org/broken")
    for path in home.rglob("*"):
        assert not (path.is_file() and hub.token.encode() in path.read_bytes()), path


def test_repositories_without_weights_fetch_the_base_models_and_refuse_others(hub, home, planted):
    source = """
from transformers import AutoModel, Dinov2Model
from ttreg_hf import add_test_time_registers, from_pretrained
from ttreg_hf.from_hub import commit_of
from ttreg_hf.checkpoint import save_checkpoint
from ttreg_hf.syncing import sync_code

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
full = push_checkpoint("small", "org/small")
report["full_notes"] = full.notes
small = push_checkpoint("small", "org/small", config_only=True)
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

api.upload_file(repo_id="org/small", path_in_repo="ttreg_base.py", path_or_fileobj=b"raise ImportError('old')")
with unittest.mock.patch("ttreg_hf.syncing.verify_checkpoint"):
    report["dry"] = sync_code("org/small", dry_run=True).changed
report["synced"] = sync_code("org/small").changed
report["again"] = sync_code("org/small").changed
outputs = pathlib.Path("small/expected_outputs.json").read_text().replace("0.", "3.")
for path, content in (("ttreg_base.py", "raise ImportError('old')"), ("expected_outputs.json", outputs)):
    api.upload_file(repo_id="org/small", path_in_repo=path, path_or_fileobj=content.encode())
report["unequal"] = outcome(sync_code, "org/small")
report["nowhere"] = outcome(sync_code, "org/nothing")
"""
    planted.model.save_pretrained(home / "base")
    torch.save(planted.sample[:2], home / "pixel_values.pt")
    told = run(hub, source, home, token=hub.token)
    assert "needs a base model on the Hub, got None" in told["no_base"]
    assert "of 40 hexadecimal digits, but `base_model_revision` is 'main'" in told["branch"]
    assert any("licence of its own" in note for note in told["full_notes"])
    assert not any("licence of its own" in note for note in told["small_notes"])
    assert max(told[name] for name in ("of_full", "of_small", "of_main")) < 1e-6
    assert told["dtype"] == "torch.bfloat16"
    assert "ValueError: org/wrong belongs to weights with the SHA-256" in told["wrong"]
    assert "ValueError: org/base must hold a patched model" in told["stock"]
    assert "OSError: org/nothing is not" in told["missing"]
    assert told["dry"] == told["synced"] == ["ttreg_base.py"]
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
    assert hub.files("org/small")["ttreg_base.py"] == b"raise ImportError('old')"  # the refused update changed nothing
    assert told["commits"] == [told["pinned"], told["other"], None]
