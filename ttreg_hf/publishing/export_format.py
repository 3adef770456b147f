"""The formats that a model can be exported to, and the packages that each of them needs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from ttreg_hf.known.packages import check_installed

ONNX, OPENVINO, EXECUTORCH = "onnx", "openvino", "executorch"
EXPORTERS_SINCE = "5.24"  # release of transformers


@dataclass(frozen=True)
class ExportFormat:
    """A format.

    Args:
        name: in commands and files.
        packages: that write and run its programs: module -> name on the package index.
        int8_packages: that quantise them too; `None` where int8 is not offered.
    """

    name: str
    packages: Mapping[str, str]
    int8_packages: Mapping[str, str] | None = None

    def check(self, *, int8: bool = False) -> None:
        """Refuse what cannot be done here, before any work.

        Raises:
            ValueError: int8, where it is not offered, or where transformers has no exporters.
            ImportError: packages are missing, or transformers is older than its exporters.
        """
        name = f"Exporting to {self.name}"
        if int8 and self.int8_packages is None:
            offered = ", ".join(each.name for each in FORMATS.values() if each.int8_packages is not None)
            raise ValueError(f"int8 is offered for {offered}, got {self.name}. Leave it out, or export to those.")
        if not has_exporters() and (int8 or self.name != ONNX):
            raise ImportError(
                f"{name}{' in int8' * int8} takes transformers {EXPORTERS_SINCE} or newer. Install it with "
                f"`pip install -U 'transformers>={EXPORTERS_SINCE}'`; ONNX in float32 works without."
            )
        check_installed(name, {**self.packages, **((self.int8_packages or {}) if int8 else {})})


_ONNX = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
FORMATS = {
    each.name: each
    for each in (
        ExportFormat(ONNX, _ONNX, int8_packages={}),
        ExportFormat(OPENVINO, {"openvino": "openvino"}, int8_packages={"nncf": "nncf"}),
        ExportFormat(EXECUTORCH, {"executorch": "executorch"}),
    )
}


def format_called(name: str) -> ExportFormat:
    """The format of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"`export_format` is one of {', '.join(FORMATS)}, got {name!r}.")
    return FORMATS[name]


def has_exporters() -> bool:
    """Whether transformers has its own exporters."""
    return importlib.util.find_spec("transformers.exporters") is not None
