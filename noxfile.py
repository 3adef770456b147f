"""What CI runs, and more, each in an environment of its own: `nox --list`."""

import nox

nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.reuse_existing_virtualenvs = True
# of transformers: the floor, one between, the newest that was tried
RELEASES = ["5.18.0", "5.21.1", "5.24.0"]


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install("ruff")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of package and scripts."""
    session.install("-e", ".[test]")
    session.run("pyrefly", "check")


@nox.session
def layers(session: nox.Session) -> None:
    """Arrows between rooms go down only."""
    session.install("-e", ".[test]")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, or those that are named behind `--`."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The manual as a site in build/site; a warning is an error."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "build/site")


@nox.session
@nox.parametrize("release", RELEASES)
def transformers(session: nox.Session, release: str) -> None:
    """Tests under a release of transformers, and checkpoints exchanged with all releases that ran before.

    Run it twice, and every release has read what every other has written.
    """
    session.install("-e", ".[test]", f"transformers=={release}")
    session.run("python", "-m", "pytest", *session.posargs)
    folder = session.cache_dir / "exchange"
    session.run("python", "-m", "benchmarks.exchange", "write", str(folder / release), env={"PYTHONPATH": "scripts"})
    for written in sorted(folder.iterdir()):
        session.run("python", "-m", "benchmarks.exchange", "read", str(written), env={"PYTHONPATH": "scripts"})
