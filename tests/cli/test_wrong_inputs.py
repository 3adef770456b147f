"""Each wrong input: exit code 1, one clear message on stderr, nothing on stdout but what was said before, no file."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.known.support import WHERE_TO_LOOK

from .conftest import run, without_waiting

CAT = next(path for path in photograph_paths() if path.stem == "cat")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder of wrong things."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.jpg").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(CAT.read_bytes()[:3000])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.jpg").write_text("not an image")
    return tmp_path


def failure(desk: Path, *arguments: object, **settings: object) -> str:
    """The message of a command that must fail, and leave everything as it was."""
    before = sorted(desk.rglob("*"))
    ended = run(*arguments)
    assert ended.code == 1, ended
    message = without_waiting(ended.err)
    assert message.startswith("ttreg: error: ")
    assert "Traceback" not in message
    assert all(line.startswith(("images: ", "1 process, ", "note: ")) for line in ended.out.splitlines())
    assert sorted(desk.rglob("*")) == before
    return message


def changed_copy(folder: Path, place: Path, file: str, **fields: object) -> Path:
    shutil.copytree(folder, place)
    (place / file).write_text(json.dumps(json.loads((place / file).read_text()) | fields))
    return place


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("note.jpg", "note.jpg is not an image that Pillow can read"),
        ("cut.jpg", "cut.jpg cannot be read to its end"),
        ("empty", "is a folder"),
        ("missing.jpg", "missing.jpg"),
    ],
)
def test_file_that_is_not_an_image(desk, checkpoint, image, message):
    arguments = ("visualize", checkpoint, CAT, desk / image, "--output", desk / "pictures")
    assert message in failure(desk, *arguments)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("empty", "holds no image"),
        ("notes", "note.jpg is not an image that Pillow can read"),
        ("missing", "does not exist"),
    ],
)
@pytest.mark.parametrize("verb", [("inspect",), ("calibrate", "--output")])
def test_folder_without_images(desk, base, verb, dataset, message):
    output = (desk / "c",) if "--output" in verb else ()
    assert message in failure(desk, verb[0], base, *verb[1:], *output, "--dataset", desk / dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-column", "photo"], r"got 'photo'. It has label, picture"),
        ([], "needs one image column"),
        (["--split", "test"], "`--split` is one of train"),
    ],
)
def test_missing_column_or_split(desk, base, monkeypatch, options, message):
    table = datasets.Dataset.from_dict({"label": [1], "picture": ["x"]})
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config=None, token=None: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: table)
    arguments = ("calibrate", base, "--output", desk / "c", "--dataset", "org/pictures", *options)
    assert message in failure(desk, *arguments)


@pytest.mark.parametrize("option", ["--split", "--config", "--image-column"])
@pytest.mark.parametrize("verb", [("inspect",), ("calibrate", "--output", "c")])
def test_options_of_data_sets_are_refused_for_pictures(desk, base, verb, option, monkeypatch):
    monkeypatch.chdir(desk)
    for dataset in ((), ("--dataset", desk / "notes")):
        message = failure(desk, verb[0], base, *verb[1:], *dataset, option, "x")
        assert f"`{option}` chooses in a data set, got 'x' for the " in message


def test_a_folder_that_may_be_meant_in_two_ways(desk, base):
    shutil.copytree(desk / "notes", desk / "both")
    (desk / "both" / "images.tar").write_bytes(b"as large")
    assert "or the files of one data set, but " in failure(desk, "inspect", base, "--dataset", desk / "both")


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.arrow", "a.zip", "."])
def test_files_of_a_data_set_that_are_broken(desk, base, name):
    (desk / "set").mkdir()
    for suffix in ("tar",) if name == "." else (name.rpartition(".")[2],):
        (desk / "set" / f"a.{suffix}").write_bytes(bytes(10_000))
    message = failure(desk, "inspect", base, "--dataset", desk / "set" / name)
    assert f"{desk / 'set'}" in message
    assert "Check that the files are whole" in message


def test_unreachable_data_set_names_the_way_out(desk, base, known, monkeypatch):
    known()

    def fail(name, config=None, token=None):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    assert "`--dataset FOLDER` takes other images" in failure(desk, "inspect", base)


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "apply", "verify", "visualize"])
@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "notes/nowhere", "/no/where", "a/b/c", "note.jpg"])
def test_a_missing_folder_is_said_to_be_missing_at_once(desk, calibration, monkeypatch, verb, name):
    monkeypatch.chdir(desk)
    given = {
        "inspect": (),
        "calibrate": ("--output", desk / "c"),
        "apply": ("--calibration", calibration, "--output", desk / "ck"),
        "verify": (),
        "visualize": (CAT, "--calibration", calibration, "--output", desk / "pictures"),
    }[verb]
    message = failure(desk, verb, name, *given)
    expected = (
        f"{name} is a file" if name == "note.jpg" else f"There is no folder {name}. Give the path of one that is"
    )
    assert expected in message
    assert message.count("\n") == 1
    assert len(message) < 200  # no list of model types


@pytest.mark.parametrize("arguments", [("report",), ("push",), ("apply", "BASE", "--output", "ck", "--calibration")])
def test_a_missing_calibration_or_checkpoint_is_said_to_be_missing(desk, base, monkeypatch, arguments):
    monkeypatch.chdir(desk)
    arguments = [base if word == "BASE" else word for word in arguments]
    more = ("org/name",) if arguments[0] == "push" else ()
    assert "There is no folder org/nowhere. Give " in failure(desk, *arguments, "org/nowhere", *more)


@pytest.mark.parametrize("family", ["bert", "nonsense"])
def test_unsupported_family_is_named_with_where_the_supported_ones_are(desk, base, family):
    model = changed_copy(base, desk / "model", "config.json", model_type=family)
    message = failure(desk, "inspect", model)
    assert family in message
    assert WHERE_TO_LOOK in message


def test_folder_that_is_not_a_checkpoint(desk):
    assert "has no config.json" in failure(desk, "calibrate", desk / "empty", "--output", desk / "c")


def test_unknown_model_is_named(desk, monkeypatch):
    from ttreg_hf import loading

    def fail(name, **options):
        raise OSError(f"{name} is not a local folder and is not a valid model identifier")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", fail)
    message = failure(desk, "apply", "facebook/dinov2-large", "--output", desk / "ck")
    assert "facebook/dinov2-large is not a local folder" in message
    assert WHERE_TO_LOOK in message


@pytest.mark.parametrize("verb", ["inspect", "apply"])
def test_broken_weights_are_named(desk, base, calibration, verb):
    model = desk / "model"
    shutil.copytree(base, model)
    (model / "model.safetensors").write_bytes(b"abc")
    more = ("--calibration", calibration, "--output", desk / "ck") if verb == "apply" else ()
    message = failure(desk, verb, model, *more)
    assert f"{model} cannot be loaded" in message
    assert f"A model is a Hub id or a local folder; {WHERE_TO_LOOK}." in message


@pytest.mark.parametrize("verb", ["calibrate", "apply", "visualize", "quickstart"])
def test_unwritable_output(desk, base, calibration, checkpoint, verb):
    given = {
        "calibrate": (base,),
        "apply": (base, "--calibration", calibration),
        "visualize": (checkpoint, CAT),
        "quickstart": (),
    }[verb]
    assert "cannot be written" in failure(desk, verb, *given, "--output", desk / "note.jpg" / "below")
    if os.getuid() != 0:  # root may write everywhere
        (desk / "empty").chmod(0o555)
        assert "cannot be written" in failure(desk, verb, *given, "--output", desk / "empty" / "below")


@pytest.mark.parametrize("verb", ["calibrate", "apply", "quickstart"])
def test_output_that_exists_is_refused(desk, base, calibration, verb):
    given = {"calibrate": (base,), "apply": (base, "--calibration", calibration), "quickstart": ()}[verb]
    assert "--overwrite" in failure(desk, verb, *given, "--output", desk / "notes")
    assert "is a file" in failure(desk, verb, *given, "--output", desk / "note.jpg")


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([[77, 3, 1.0]], "names layer 77, but the `scores` have 6 (0 to 5)"),
        ([[2, 3000, 1.0]], "names neuron 3000, but the `scores` have 256 (0 to 255)"),
        ([[2, 3, float("nan")]], "`register_neurons[0].score` is finite, got nan"),
    ],
)
@pytest.mark.parametrize("verb", ["apply", "visualize"])
def test_neurons_that_the_calibration_does_not_have(desk, base, calibration, verb, neurons, message):
    other = changed_copy(calibration, desk / "other", "calibration.json", register_neurons=neurons)
    images = (CAT,) if verb == "visualize" else ()
    assert message in failure(desk, verb, base, *images, "--calibration", other, "--output", desk / "out")


def test_model_without_published_neurons_lists_those_that_have_some(desk, base):
    message = failure(desk, "apply", base, "--output", desk / "out")
    assert "facebook/dinov2-large" in message


def test_neuron_that_the_model_does_not_have(desk, checkpoint):
    arguments = ("visualize", checkpoint, CAT, "--neuron", "9/0", "--output", desk / "out")
    assert "names layer 9" in failure(desk, *arguments)


def test_layer_that_the_model_does_not_have(desk, base):
    assert "got 9" in failure(desk, "calibrate", base, "--last-layer", "9", "--output", desk / "c")


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 1}', "[]"])
def test_folder_that_is_not_a_calibration(desk, base, calibration, text):
    other = desk / "other"
    shutil.copytree(calibration, other)
    (other / "calibration.json").write_text(text)
    message = failure(desk, "apply", base, "--calibration", other, "--output", desk / "out")
    assert str(other) in message
    assert "has no calibration.json" in failure(
        desk, "apply", base, "--calibration", desk / "empty", "--output", desk / "out"
    )


def test_recipe_of_an_unknown_model(desk, base):
    message = failure(desk, "calibrate", base, "--recipe", "--output", desk / "c")
    assert "Recipes exist for" in message


def test_device_that_is_not_there(desk, base):
    assert "Here: cpu" in failure(desk, "inspect", base, "--device", "cuda:99")


def test_debug_adds_the_traceback(desk, base):
    ended = run("inspect", base, "--dataset", desk / "empty", "--debug")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("ttreg: error: The folder")


def test_bug_keeps_its_traceback(base, monkeypatch):
    def fail(*args, **options):
        raise KeyError("a bug")

    monkeypatch.setattr("ttreg_hf.calibration.calibration_run.inspect_norms", fail)
    with pytest.raises(KeyError, match="a bug"):
        run("inspect", base)


def test_failure_on_another_rank_is_not_silent(desk, base, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    ended = run("inspect", base, "--dataset", desk / "empty")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("ttreg (rank 2): error: ")  # nor does it say what it waits for
