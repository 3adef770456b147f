"""What a live Space holds, and how progress is counted; neither needs gradio."""

import ast
import re
from importlib import metadata

import pytest

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.demonstration import live, live_space
from ttreg_hf.known import install_spec
from ttreg_hf.planted import PLANTED_NOTE, synthetic_images
from ttreg_hf.report.neuron_switch import record_switch, states_to_show

SPEC = "ttreg_hf @ git+https://example.org/ttreg_hf@abc"


@pytest.fixture(autouse=True)
def gradio(monkeypatch):
    """The package's source and a gradio, as after a release and its installation."""
    monkeypatch.setattr(install_spec, "INSTALL_SPEC", SPEC)
    monkeypatch.setattr(live_space, "gradio_version", lambda: "6.0.1")


def arguments_of(space):
    """Of the command that the Space runs."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(space.files["app.py"]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    return ast.literal_eval(call.args[0])


def test_it_runs_the_command_on_the_commit_that_was_seen(shown):
    space = live_space.live_space(shown.patched, "org/vit", commit="abc", options=["--dtype", "bfloat16"])
    assert arguments_of(space) == ["demo", "org/vit", "--live", "--revision", "abc", "--dtype", "bfloat16"]
    assert sorted(space.files) == ["app.py", "requirements.txt"]
    data = space.card.data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"], data["models"]) == (
        "gradio",
        "6.0.1",
        "app.py",
        ["org/vit"],
    )
    assert PLANTED_NOTE in str(space.card)


def test_everything_that_it_installs_is_pinned(shown):
    space = live_space.live_space(shown.patched, "org/vit", commit="abc")
    spec, *pins = space.files["requirements.txt"].decode().splitlines()
    assert spec == SPEC
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert f"transformers=={metadata.version('transformers')}" in pins
    assert {pin.split("==")[0] for pin in pins} >= {"torch", "jinja2", "typer"}
    assert not any(pin.startswith(("gradio", "pytest", "peft")) for pin in pins)


def test_a_calibration_goes_with_it_without_names_of_this_machine(shown, tmp_path):
    settings = CalibrationConfig(num_images=8, top_k=2, last_layer=2, norm_threshold=20.0)
    result = calibrate(shown.base, synthetic_images(8), config=settings)
    space = live_space.live_space(shown.base, "org/stock", commit=None, calibration=result)
    assert arguments_of(space) == ["demo", "org/stock", "--live", "--calibration", "calibration"]
    (tmp_path / "calibration").mkdir()
    for name in ("calibration.json", "calibration.safetensors"):
        (tmp_path / "calibration" / name).write_bytes(space.files[f"calibration/{name}"])
    found = CalibrationResult.load(tmp_path / "calibration")
    assert found.register_neurons == result.register_neurons


def test_what_the_hub_cannot_run_is_refused(shown, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="loads its model from the Hub by `namespace/name`, got"):
        live_space.live_space(shown.patched, str(tmp_path), commit=None)
    monkeypatch.setattr(install_spec, "INSTALL_SPEC", None)
    with pytest.raises(ValueError, match="installs ttreg_hf from the address of its source"):
        live_space.live_space(shown.patched, "org/vit", commit="abc")


def test_progress_counts_every_state_once(shown):
    seen = []
    progress = live._counted(lambda step, desc, unit: seen.append((*step, desc)), len(states_to_show(shown.patched)))
    record_switch(shown.base, shown.patched, shown.images[:1], None, detection_layer=3, progress=progress)
    assert seen == [
        (0, 6, "base"),
        (1, 6, "zeroed 3"),
        (2, 6, "random 3"),
        (3, 6, "moved 1"),
        (4, 6, "moved 2"),
        (5, 6, "moved 3"),
    ]
