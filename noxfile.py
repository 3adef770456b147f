"""What CI runs, and more, each in an environment of its own: `nox --list`."""

import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.reuse_existing_virtualenvs = True
# of transformers: the floor, one between, the newest that was tried
RELEASES = ["5.18.0", "5.21.1", "5.24.0"]
# every package in the version that CI uses; written by `nox -s constraints`
CONSTRAINTS = ".ci/constraints.txt"
# what tests need where the extra `test` would pin torch
TOOLS = ["pytest>=8", "pytest-xdist", "hypothesis"]
# a model in, a model out: every law of every family, checkpoints, strangers, quickstart
FRONT_DOOR = [
    *(f"tests/modeling/test_{what}.py" for what in ("laws", "constant_laws", "shift")),
    *(f"tests/modeling/test_{what}.py" for what in ("checkpoints", "suitcase", "training")),
    *(f"tests/test_{what}.py" for what in ("front_door", "applying", "loading", "quickstart")),
]
# whose blocks docs/other-tools.md has
ROADS = ["timm", "open_clip_torch", "sentence-transformers", "fiftyone", "nnsight"]
# what GitHub reads, by the schema that it must follow
GITHUB = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "dependabot": ".github/dependabot.yml",
    "citation-file-format": "CITATION.cff",
}


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install("-c", CONSTRAINTS, "ruff")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of package, scripts and tests."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("pyrefly", "check")


@nox.session
def layers(session: nox.Session) -> None:
    """Arrows between rooms go down only."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, or those that are named behind `--`."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branches that the tests take, in all their processes, and the lines that none takes."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]", "coverage>=7.10")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """The manual as a site in build/site; a warning is an error."""
    session.install("-c", CONSTRAINTS, "-e", ".[docs]")
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


@nox.session
def transformers_main(session: nox.Session) -> None:
    """Tests under transformers' main branch, where code that travels breaks first."""
    session.install("-e", ".[test]", "transformers @ git+https://github.com/huggingface/transformers")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """The front door with every dependency at its floor, under the oldest Python."""
    floors = f"{session.create_tmp()}/lowest.txt"
    session.install("uv")
    session.run("uv", "pip", "compile", "--quiet", "--resolution=lowest-direct", "pyproject.toml", "-o", floors)
    session.run("uv", "pip", "install", "-r", floors)
    session.run("uv", "pip", "install", "-c", floors, "-e", ".[evaluate]", *TOOLS)
    # what old releases of other packages deprecate is theirs
    session.run("python", "-m", "pytest", "-W", "default::DeprecationWarning", *(session.posargs or FRONT_DOOR))


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The front door with the newest of all packages, torch included, under the newest Python that was tried."""
    session.install("--upgrade", "-e", ".[evaluate]", *TOOLS)
    session.run("python", "-m", "pytest", *(session.posargs or FRONT_DOOR))


@nox.session
def roads(session: nox.Session) -> None:
    """The blocks of docs/other-tools.md, each with its package."""
    session.install("-e", ".[evaluate]", *TOOLS, *ROADS)
    session.install("--no-deps", "ai-dynamo")  # its driver of encoders alone: the rest needs vLLM
    session.run("python", "-m", "pytest", "tests/test_other_tools.py", env={"FIFTYONE_DO_NOT_TRACK": "1"})


@nox.session
def release(session: nox.Session) -> None:
    """Source archive and wheel in dist/: metadata, contents and size, and the wheel tried where nothing else is."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")
    (wheel,) = Path("dist").resolve().glob("*.whl")
    session.run("twine", "check", "--strict", str(wheel), *map(str, Path("dist").glob("*.tar.gz")))
    session.run("python", "scripts/check_release.py", "dist")
    versions, smoke_test = Path(CONSTRAINTS).resolve(), Path("scripts/smoke_test.py").resolve()
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        session.run("python", "-m", "venv", "clean")
        session.run("clean/bin/pip", "install", "-c", str(versions), str(wheel), external=True)
        for arguments in (["--version"], ["list"], ["env"], ["quickstart", "--output", "quickstart"]):
            session.run("clean/bin/ttreg", *arguments, external=True)
        session.run("clean/bin/python", str(smoke_test), "quickstart", external=True)


@nox.session
def workflows(session: nox.Session) -> None:
    """Syntax and safety of what GitHub reads, and CITATION.cff, without a network."""
    session.install("check-jsonschema", "zizmor")
    for schema, pattern in GITHUB.items():
        files = sorted(map(str, Path().glob(pattern)))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    session.run("zizmor", "--offline", ".github")


@nox.session
def constraints(session: nox.Session) -> None:
    """Write .ci/constraints.txt anew: the newest of every package that the tests take, for every Python."""
    session.install("uv")
    options = ["--universal", "--upgrade", "--no-annotate", "--python-version=3.10", "--extra=test", "-o", CONSTRAINTS]
    session.run(
        "uv", "pip", "compile", "--quiet", *options, "pyproject.toml",
        env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s constraints"},
    )  # fmt: skip
