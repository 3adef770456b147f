"""The page: everything that it shows is inside it, and what comes from outside is escaped."""

import base64
import re
from collections.abc import Mapping

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.pictures.numbers import counted, percent
from ttreg_hf.report import tables
from ttreg_hf.report.constant_table import constant_table, constant_words
from ttreg_hf.report.head_room_table import head_room_table
from ttreg_hf.report.neuron_switch import NeuronSwitch
from ttreg_hf.report.position_words import position_words
from ttreg_hf.report.switch_data import switch_data
from ttreg_hf.report.table import Table
from ttreg_hf.report.verification_tables import notes_of, verification_tables

_CODE = re.compile("`([^`]*)`")


def render_page(result: CalibrationResult, switch: NeuronSwitch | None, figures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        result: of the calibration.
        switch: the photographs; `None` leaves them out.
        figures: name, as `figures_of` gives it -> PNG.
    """
    norms, verification = result.norms, result.verification
    before_after, gate, controls = None, None, None
    if verification is not None:
        before_after, gate, controls = verification_tables(
            verification, detection_layer=norms.detection_layer, norm_threshold=norms.norm_threshold
        )
    return (
        environment("ttreg_hf.report")
        .get_template("report.html")
        .render(
            counted=counted,
            result=result,
            headline=result.headline,
            meaning=result.meaning,
            positions=position_words(result.norms.positions),
            model=result.provenance.model.rstrip("/").split("/")[-1],
            summary=_summary(result),
            switch=switch,
            switch_data=None if switch is None else switch_data(switch, norms.norm_threshold),
            figures={name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in figures.items()},
            norms=tables.norm_table(result),
            gate=gate,
            before_after=before_after,
            controls=controls,
            constant=constant_table(result.constant_mode) if result.constant_mode else None,
            constant_words=constant_words(result.constant_mode) if result.constant_mode else [],
            head_room=None if verification is None else _head_room(verification),
            notes=[] if verification is None else notes_of(verification),
            selection=tables.selection_table(result),
            neurons=tables.neuron_table(result) if result.register_neurons else None,
            settings=tables.setting_table(result),
            provenance=tables.provenance_table(result),
        )
    )


def _head_room(verification: Verification) -> Table | None:
    return None if verification.head_rooms is None else head_room_table(verification.head_rooms)


def environment(package: str) -> Environment:
    """Where the templates of a package are rendered, which may include those of the report.

    Args:
        package: with a folder `template`.
    """
    packages = dict.fromkeys((package, "ttreg_hf.report"))
    rendered = Environment(
        loader=ChoiceLoader([PackageLoader(each, "template") for each in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    rendered.filters["with_code"] = _with_code
    return rendered


def _with_code(text: str) -> Markup:
    """Escaped, with what stands in backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped first


def _summary(result: CalibrationResult) -> list[tuple[str, str]]:
    """The few numbers on top: what it is, and how much."""
    norms, verification = result.norms, result.verification
    numbers = [(f"{100 * norms.images_with_outliers:.0f} %", "of the photographs have outlier patches")]
    if result.register_neurons:
        layers = counted(len({neuron.layer for neuron in result.register_neurons}), "layer")
        neurons, noun = counted(len(result.register_neurons), "register neuron").split(" ", 1)
        numbers.append((neurons, f"{noun} in {layers}"))
    if result.fixed_positions:
        number, noun = counted(len(result.fixed_positions), "spike").split(" ", 1)
        numbers.append((number, f"{noun} of the position table"))
    if verification is not None:
        before, after = verification.outlier_fraction_before, verification.outlier_fraction_after
        numbers.append((f"{percent(before)} → {percent(after)}", "of the patches are outliers"))
        numbers.append((f"{verification.feature_similarity:.4f}", "cosine of the feature to the base model's"))
    return numbers
