"""One's own pictures as a model sees them, with the neuron switch: recorded, and shown as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape
from transformers import PreTrainedModel

from ttreg_hf.applying import base_name
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.demonstration.demo_page import Shown, render_demo
from ttreg_hf.demonstration.subject import Subject
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.images.progress import Progress, silent
from ttreg_hf.loading import is_hub_id
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.picture_files import check_images
from ttreg_hf.pictures.visualization import base_form
from ttreg_hf.planted import planted_note
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
    calibration: CalibrationResult | None = None,
    processor: Any = None,
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
        calibration: says which patches are outliers, and has the rows of constant mode, which is shown too if they
            belong to these neurons; one that was saved beside other weights says nothing. `None`: `register_neurons`
            if that is one; without these, the one beside the checkpoint. Without any, outliers are told as published,
            else none is.
        processor: image processor; found by the id or path if not given.
        tower: dotted path of the vision tower, in a model that holds several; a patched model keeps its own.
        name: Hub id or path of the checkpoint, where a model is given that does not know it.
        progress: shows how far it is.

    Raises:
        ValueError: no images, unsupported family, no processor, or a calibration of other weights.
        OSError: an image that cannot be read; it is named.
    """
    given = _checked(images)
    subject = Subject.open(
        model_or_id, register_neurons, calibration=calibration, processor=processor, tower=tower, name=name
    )
    return show(subject, given, progress=progress)


def show(subject: Subject, images: Sequence[Any], *, progress: Progress = silent) -> Demo:
    """The page of a model that is open.

    Args:
        subject: the model.
        images: at least one, each as in `demo`; its files can be read.
        progress: shows how far it is.

    Raises:
        OSError: an image that the processor refuses.
    """
    base, patched = base_form(subject.model), subject.patched
    vision = VisionTower.of(base)
    switch = record_switch(
        base,
        patched,
        [
            to_pixel_values(image, subject.processor, name=f"image {number}", channels=vision.num_channels)
            for number, image in enumerate(images, start=1)
        ],
        subject.processor,
        detection_layer=subject.detection_layer,
        every_block=True,
        note=planted_note(subject.model),
        constants=subject.constants,
        progress=progress,
    )
    neurons = () if patched is None else tuple(map(tuple, patched.registers.config.register_neurons))
    shown = Shown(subject.title, switch, neurons, sum(vision.widths), subject.norm_threshold)
    name, base_id = subject.name, base_name(subject.model)
    return Demo(
        title=subject.title,
        html=render_demo(shown),
        switch=switch,
        checkpoint=name if isinstance(subject.model, TTRegModelMixin) and is_hub_id(name) else None,
        base=base_id if is_hub_id(base_id) else None,
    )


def _checked(images: Any) -> Sequence[Any]:
    """As a list, of which every file can be read."""
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if not given:
        raise ValueError("`images` is one image or a list of them, got an empty list. Give at least one.")
    check_images([image for image in given if isinstance(image, (str, Path))])
    return given
