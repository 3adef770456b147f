#!/usr/bin/env python
"""Writes `ttreg_hf/__init__.pyi`: the one list of the package's public names, and its patched classes for editors.

Run it after a family was added. `--check` only says whether the file is current.
"""

import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ttreg_hf.modeling.families import FAMILIES
from ttreg_hf.modeling.modeling_ttreg import patched_name

STUB = Path(__file__).parents[1] / "ttreg_hf" / "__init__.pyi"
# models around a tower whose classes are listed too; those of any other are made by their names alike
AROUND_A_TOWER = ("aimv2", "clip", "depth_anything", "dpt", "llava", "llava_next", "metaclip_2", "siglip", "siglip2")
NAMES = {
    "applying": ("add_test_time_registers", "published_register_neurons"),
    "calibration.calibration_result": ("CalibrationResult",),
    "calibration.calibration_run": ("calibrate", "inspect_norms"),
    "calibration.config": ("CalibrationConfig", "GateConfig"),
    "demonstration.demo": ("Demo", "demo"),
    "evaluation.evaluation_config": ("EvaluationConfig",),
    "evaluation.evaluation_result": ("Evaluation",),
    "evaluation.evaluation_run": ("evaluate",),
    "images.data_sets": ("NamedImages",),
    "images.data_source": ("DataSource",),
    "loading": ("ModelSource",),
    "measuring.norms": ("NormReport",),
    "pictures.norm_plots": ("plot_norms",),
    "pictures.visualization": ("Maps", "compute_maps", "visualize"),
    "publishing.checkpoint": ("make_checkpoint",),
    "publishing.published_model": ("from_pretrained",),
    "register_neuron": ("RegisterNeuron",),
    "report.calibration_folder": ("calibrate_to_folder",),
}


def stub() -> str:
    """The text of the file."""
    lines = [
        '"""Written by `scripts/write_stub.py`: what `ttreg_hf` exports."""',
        "",
        "import transformers",
        "",
        *(f"from .{module} import {', '.join(names)}" for module, names in NAMES.items()),
        "from .modeling.modeling_ttreg import TTRegConfigMixin, TTRegModelMixin",
        "",
        "__version__: str",
    ]
    for model_type in sorted({*FAMILIES, *AROUND_A_TOWER}):
        config = CONFIG_MAPPING_NAMES[model_type]
        patched = f"{config.removesuffix('Config')}TTRegConfig"
        lines += ["", f"class {patched}(TTRegConfigMixin, transformers.{config}): ..."]
        for stock in _heads(getattr(transformers, config)):
            lines += [f"class {patched_name(stock)}(TTRegModelMixin, transformers.{stock.__name__}): ..."]
    return "\n".join(lines) + "\n"


def _heads(config: Any) -> list[Any]:
    """All model classes that transformers exports for a config, in order of their names."""
    prefix = config.__name__.removesuffix("Config")
    exported = (getattr(transformers, name) for name in dir(transformers) if name.startswith(prefix))
    models = (each for each in exported if isinstance(each, type) and issubclass(each, PreTrainedModel))
    return [each for each in models if each.config_class is config and each.__name__ != f"{prefix}PreTrainedModel"]


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(None if STUB.read_text(encoding="utf-8") == stub() else f"{STUB} is not current: run {__file__}")
    STUB.write_text(stub(), encoding="utf-8")
