"""One's own pictures as a model sees them, with the neuron switch: recorded, and shown as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import base_name
from ttreg_hf.calibration.calibration_beside import calibration_beside
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.demonstration.demo_page import Shown, render_demo
from ttreg_hf.evaluation.constant_row import why_no_constants
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.images.progress import Progress, silent
from ttreg_hf.loading import is_hub_id
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.picture_files import check_images
from ttreg_hf.pictures.visualization import HasNorms, base_form, detection_of, opened, patched_form
from ttreg_hf.planted import planted_note
from ttreg_hf.publishing.privacy import public_title
from ttreg_hf.report.neuron_switch import NeuronSwitch, record_switch
from ttreg_hf.writing import whole_directory, write_file

PAGE_FILE = "index.html"
_NOTEBOOK_HEIGHT = "900px"


@dataclass(frozen=True, eq=False)
class Demo:
    """What `demo` returns; the last line of a notebook's cell shows it.

    Args:
        title: name of the model.
        html: the page; nothing in it comes from elsewhere.
        switch: what it shows.
        checkpoint: Hub id of the patched checkpoint; `None` where the model is none, or lies in a folder.
        base: Hub id of the stock checkpoint; `None` where it is not known.
    """

    title: str
    html: str
    switch: NeuronSwitch
    checkpoint: str | None
    base: str | None

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page as `index.html`; the folder appears whole or not at all.

        Returns:
            The file.

        Raises:
            FileExistsError: the folder exists and is not empty.
        """
        with whole_directory(directory, overwrite=overwrite) as folder:
            write_file(folder / PAGE_FILE, self.html.encode("utf-8"))
        return Path(directory) / PAGE_FILE

    def framed(self, height: str) -> str:
        """The page in a frame of its own, so that its style and that of the page around it leave each other alone.

        Args:
            height: of the frame, as CSS has it.
        """
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="{escape(self.title)}" sandbox="allow-scripts" '
            f'style="width: 100%; height: {height}; border: 0"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.framed(_NOTEBOOK_HEIGHT)


def demo(
    model_or_id: PreTrainedModel | str | Path,
    images: Any,
    register_neurons: Any = None,
    *,
    processor: Any = None,
    detection_layer: int | None = None,
    norm_threshold: float | None = None,
    constants: Tensor | None = None,
    tower: str | None = None,
    name: str = "",
    progress: Progress = silent,
) -> Demo:
    """The neuron switch on your own pictures, as a page that needs no server, or inline in a notebook.

    The neurons are those of `register_neurons`, else of a patched model its own, else the published ones. Without any
    of them the page shows the base model alone.

    Args:
        model_or_id: any model with a supported vision tower in it, stock or patched; or its Hub id or path.
        images: one image or a list of them: paths, PIL images, uint8 arrays, or float tensors `(C, H, W)`, which are
            used as `pixel_values` as they are.
        register_neurons: as in `add_test_time_registers`, such as a `CalibrationResult`.
        processor: image processor; found by the id or path if not given.
        detection_layer: block whose norms tell outliers, 0-based; negative ones count from the end. `None`: the one of
            the calibration, which may lie beside a checkpoint, else the published one, else the family's.
        norm_threshold: L2 norm at that block above which a patch counts as an outlier. `None`: likewise, else none is
            marked.
        constants: rows of constant mode for these neurons, which is shown too. `None`: those of the calibration.
        tower: dotted path of the vision tower, in a model that holds several; a patched model keeps its own.
        name: Hub id or path of the checkpoint, where a model is given that does not know it.
        progress: shows how far it is.

    Raises:
        ValueError: no images, unsupported family, no processor, or a layer that the model does not have.
        OSError: an image that cannot be read; it is named.
    """
    given = _as_list(images)
    check_images([image for image in given if isinstance(image, (str, Path))])
    model, processor = opened(model_or_id, processor, tower)
    base, patched = base_form(model), patched_form(model, register_neurons)
    vision = VisionTower.of(base)
    found = _measured_beside(model, model_or_id) if register_neurons is None else register_neurons
    layer, threshold = detection_of(model, found)
    switch = record_switch(
        base,
        patched,
        [
            to_pixel_values(image, processor, name=f"image {number}", channels=vision.num_channels)
            for number, image in enumerate(given, start=1)
        ],
        processor,
        detection_layer=layer if detection_layer is None else vision.layer("detection_layer", detection_layer),
        every_block=True,
        note=planted_note(model),
        constants=constants_to_show(patched, found) if constants is None else constants,
        progress=progress,
    )
    name = name or (str(model_or_id) if isinstance(model_or_id, (str, Path)) else base_name(model))
    title = public_title(name, model)
    threshold = threshold if norm_threshold is None else norm_threshold
    neurons = () if patched is None else tuple(map(tuple, patched.registers.config.register_neurons))
    shown = Shown(title, switch, neurons, sum(vision.widths), threshold)
    base_id = base_name(model)
    return Demo(
        title=title,
        html=render_demo(shown),
        switch=switch,
        checkpoint=name if isinstance(model, TTRegModelMixin) and is_hub_id(name) else None,
        base=base_id if is_hub_id(base_id) else None,
    )


def constants_to_show(patched: TTRegModelMixin | None, found: Any) -> Tensor | None:
    """Rows of constant mode, where a calibration has them for the neurons of this patched model."""
    is_measured = patched is not None and isinstance(found, CalibrationResult)
    return found.constants if is_measured and why_no_constants(patched, found) is None else None


def _as_list(images: Any) -> Sequence[Any]:
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if not given:
        raise ValueError("`images` is one image or a list of them, got an empty list. Give at least one.")
    return given


def _measured_beside(model: PreTrainedModel, model_or_id: Any) -> HasNorms | None:
    """What lies beside a checkpoint, if it was found on that checkpoint's weights."""
    if not isinstance(model_or_id, (str, Path)):
        return None
    found = calibration_beside(model, model_or_id)
    return None if found is None or found.on_other_weights else found
