"""Publishing to the stand-in for the Hub: updates, refusals, and failures that leave everything as it was.

Each test is one child process that pushes many times.
"""

import json
from pathlib import Path

from .publisher import run

CODE = {"families.py", "modeling_ttreg.py", "registers.py"}


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
    assert "is unresolved. `--force` (`force=True`) goes on all the same." in told["unresolved"]
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
Image.new("RGB", (4, 4)).save("changed/pictures/cat.png")
for name in ("client_secret.json", "TODO.md", "handler.py", "optimizer.pt", ".env", "NOTICE", "pictures/notes.txt"):
    pathlib.Path("changed", name).write_text("mine")
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
    unsent = (
        "not sent, because ttreg does not make such files: TODO.md, client_secret.json, handler.py, optimizer.pt, "
    )
    assert f"{unsent}pictures/notes.txt" in told["notes"]
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
    assert files.keys() == CODE | {
        *("README.md", "config.json", "expected_outputs.json", "model.safetensors", "pictures/cat.png"),
        *("NOTICE", "notes.md", ".gitattributes"),
    }
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
    assert "the verdict of its calibration is unresolved" in told["refused"]["err"]
    assert "nothing was changed on the Hub" in told["failed"]["err"]
    assert "hf auth login" in told["anonymous"]["err"]
    assert "There is no folder nowhere" in told["missing"]["err"]
    assert f"published  {hub.url}/org/vit/commit/{hub.commits('org/vit')[1].oid}" in told["pushed"]["out"]
    assert json.loads(told["forced"]["out"])["commit"] == hub.commits("org/vit")[0].oid
    assert told["synced"]["out"] == "org/vit has the installed code already\n"
    assert not hub.has_repository("org/broken")
    for path in home.rglob("*"):
        assert not (path.is_file() and hub.token.encode() in path.read_bytes()), path
