"""The live demonstration as a Space of the Hub that runs gradio: the command line, with every version pinned."""

import re
import sys
from collections.abc import Sequence
from importlib import metadata

from transformers import PreTrainedModel

from ttreg_hf.applying import base_name
from ttreg_hf.calibration.calibration_result import JSON_FILE, TENSOR_FILE, CalibrationResult
from ttreg_hf.demonstration.live import gradio_version
from ttreg_hf.demonstration.space import Space, space_card
from ttreg_hf.known import install_spec
from ttreg_hf.loading import is_hub_id
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.planted import planted_note
from ttreg_hf.publishing.privacy import calibration_without_local_names, public_title
from ttreg_hf.writing import scratch_directory

_GRADIO = "gradio"
_APP, _REQUIREMENTS, _CALIBRATION = "app.py", "requirements.txt", "calibration"
_SOURCE = '''"""The neuron switch of {model}, live. Made by `ttreg demo {model} --live --space`."""

import sys

from ttreg_hf.cli import main

sys.exit(main({arguments}))
'''
_NAME = re.compile(r"[\w.-]+")


def live_space(
    model: PreTrainedModel,
    model_id: str,
    *,
    commit: str | None,
    calibration: CalibrationResult | None = None,
    options: Sequence[str] = (),
) -> Space:
    """A Space that runs `ttreg demo MODEL --live`.

    Args:
        model: as it was loaded.
        model_id: on the Hub, where the Space loads it from.
        commit: of it there.
        calibration: that says the neurons, which the Space gets too; `None`: the model's own, or the published ones.
        options: more of the command's, such as `["--dtype", "bfloat16"]`.

    Raises:
        ValueError: a model in a folder, or a source of this package that is not known.
        ImportError: gradio, whose version the Space runs, is not installed.
    """
    if not is_hub_id(model_id):
        raise ValueError(
            f"A live Space loads its model from the Hub by `namespace/name`, got {model_id!r}. Publish it with "
            "`ttreg push`, and give its id."
        )
    arguments = ["demo", model_id, "--live", *(["--revision", commit] if commit else []), *options]
    files = {_REQUIREMENTS: _pinned_requirements().encode()}
    if calibration is not None:
        arguments += ["--calibration", _CALIBRATION]
        files |= _calibration_files(calibration)
    files[_APP] = _SOURCE.format(model=model_id, arguments=arguments).encode()
    base, title = base_name(model), public_title(model_id, model)
    card = space_card(
        title,
        checkpoint=model_id if isinstance(model, TTRegModelMixin) else None,
        base=base if is_hub_id(base) else None,
        note=planted_note(model),
        pictures=None,
        sdk=_GRADIO,
        sdk_version=gradio_version(),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file=_APP,
    )
    return Space(title, _GRADIO, files, card)


def _pinned_requirements() -> str:
    """This package at its pinned source, and what it needs in the versions that are installed here."""
    if install_spec.INSTALL_SPEC is None:
        raise ValueError(
            "A live Space installs ttreg_hf from the address of its source, and this version does not know it. Set "
            "`INSTALL_SPEC` in ttreg_hf/known/install_spec.py to an address with a commit."
        )
    needed = [line for line in metadata.requires("ttreg_hf") or () if "extra ==" not in line]
    names = [match[0] for line in needed if (match := _NAME.match(line)) is not None]
    pins = [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]  # without a build, as in 2.13.0+cpu
    return "\n".join([install_spec.INSTALL_SPEC, *pins]) + "\n"


def _calibration_files(calibration: CalibrationResult) -> dict[str, bytes]:
    with scratch_directory() as folder:
        calibration_without_local_names(calibration).save(folder)
        return {f"{_CALIBRATION}/{name}": (folder / name).read_bytes() for name in (JSON_FILE, TENSOR_FILE)}
