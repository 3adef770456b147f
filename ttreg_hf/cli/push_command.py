"""`ttreg push`: a checkpoint on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ttreg_hf.cli import options
from ttreg_hf.cli.command import refuse
from ttreg_hf.cli.printer import Printer, is_first_rank

Repo = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub.", show_default=False)]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Branch = Annotated[str | None, typer.Option(help="Branch to push to; made if there is none. Default: main.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list; change nothing on the Hub.")]
WriteToken = Annotated[str | None, typer.Option(help="Hub token. Default: that of `hf auth login`.")]


def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Folder of `ttreg apply`.", show_default=False)],
    repo: Repo,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository. Default: as your account.")
    ] = None,
    revision: Branch = None,
    tag: Annotated[str | None, typer.Option(help="Name of the new commit, which the card pins.")] = None,
    create_pr: CreatePr = False,
    commit_message: Annotated[str | None, typer.Option(help="First line of the commit.")] = None,
    config_only: Annotated[
        bool | None,
        typer.Option(
            "--config-only/--full-weights",
            help="Publish no weights, but where to get the base model's; or the weights in any case. Default: the "
            "weights where the base model's licence is a permissive one.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish whatever the verdict is.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: DryRun = False,
    token: WriteToken = None,
    json: options.Json = False,
) -> None:
    """Publish a checkpoint folder on the Hub, in one commit: weights, code, processor, calibration, pictures, card.

    Before anything is uploaded, the folder is loaded in a fresh interpreter without ttreg_hf and must give the outputs
    that were recorded when it was made. Only what ttreg makes is sent, and licence files. Pushing again updates the
    card and keeps what you wrote on it.
    """
    from ttreg_hf.publishing.checkpoint import VerdictError
    from ttreg_hf.publishing.push import push_checkpoint

    printer = Printer(json)
    if not is_first_rank():
        return
    try:
        done = push_checkpoint(
            checkpoint,
            repo,
            private=private,
            revision=revision,
            tag=tag,
            create_pr=create_pr,
            commit_message=commit_message,
            config_only=config_only,
            force=force,
            trust_remote_code=trust_remote_code,
            dry_run=dry_run,
            token=token,
        )
    except VerdictError as error:
        refuse(f"not published: {error}")

    printer.say("verified: loads in a fresh interpreter without ttreg_hf and gives the recorded outputs")
    for name, size in done.sizes.items():
        printer.say(f"{size:>14,}  {name}")
    for note in done.notes:
        printer.say(f"note: {note}")
    url = None if done.commit is None else done.commit.pr_url or done.commit.commit_url
    if url is None:
        printer.say(f"dry run: nothing was sent to {done.repo_id}")
    else:
        printer.say(f"{'published' if done.changed else 'unchanged'}  {url}")
    printer.result(
        {
            "repo_id": done.repo_id,
            "files": dict(done.sizes),
            "notes": list(done.notes),
            "changed": done.changed,
            "commit": done.commit and done.commit.oid,
            "url": url,
        }
    )
