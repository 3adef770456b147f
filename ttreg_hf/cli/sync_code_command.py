"""`ttreg sync-code`: newer travelling code for a published checkpoint."""

from ttreg_hf.cli import options
from ttreg_hf.cli.printer import Printer, is_first_rank
from ttreg_hf.cli.push_command import Branch, CreatePr, DryRun, Repo, WriteToken


def sync_code(
    repo: Repo,
    revision: Branch = None,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
    token: WriteToken = None,
    json: options.Json = False,
) -> None:
    """Replace the travelling code of a published checkpoint by the installed one, after proving equal outputs.

    Other files of the repository stay as they are.
    """
    from ttreg_hf.publishing.code_sync import sync_code

    printer = Printer(json)
    if not is_first_rank():
        return
    done = sync_code(repo, revision=revision, create_pr=create_pr, dry_run=dry_run, token=token)
    if not done.changed:
        printer.say(f"{repo} has the installed code already")
    else:
        printer.say("verified: the new code gives the recorded outputs")
    for name in done.changed:
        printer.say(f"{'differs' if done.commit is None else 'replaced'}  {name}")
    url = None if done.commit is None else done.commit.pr_url or done.commit.commit_url
    if url is not None:
        printer.say(f"published  {url}")
    printer.result({"repo_id": repo, "changed": list(done.changed), "commit": done.commit and done.commit.oid})
