"""What a calibration found, and its two files: `calibration.json` and `calibration.safetensors`."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.candidates import Candidate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.consistency import check_consistency
from ttreg_hf.calibration.constant_mode import ConstantMode
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.provenance import Provenance
from ttreg_hf.calibration.selection import Selection
from ttreg_hf.calibration.verdict import Look, headline, meaning
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.measuring.trunk_weights import has_checksum
from ttreg_hf.records import from_json, read_json
from ttreg_hf.register_neuron import RegisterNeuron
from ttreg_hf.writing import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON_FILE, TENSOR_FILE = "calibration.json", "calibration.safetensors"
_FORMAT = 6


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """Register neurons of a checkpoint, the evidence, and the verdict.

    Args:
        register_neurons: ranked, strongest first; empty if the model is clean.
        fixed_positions: rows of the position table, `(row, column)`, that are spikes and to be taken away.
        scores: of all neurons, `(L, F)` float64 on the CPU; 0 where not searched.
        verdict: `"fixed"` (moving the neurons works), `"clean"` (nothing to do) or `"unresolved"` (do not patch).
        norms: of the base model's patch tokens.
        verification: base against patched; `None` for a clean model.
        shift_value: how to move them, `"per_neuron"` or `"per_layer"`.
        reasons: why the verdict is not `"fixed"`, and what to try.
        selections: how the set was chosen, one entry a round; empty if `top_k` was given.
        candidates: contrast, consistency and sparsity of the register neurons; empty if `top_k` was given.
        convergence: how the best neurons settled with more images; `None` if none were scored.
        config: the settings with every automatic choice filled in.
        chosen: names of the settings that were chosen automatically.
        provenance: where this comes from.
        outlier_rule: which tokens counted as outliers, exceptions included.
        looks: at the norms, at the images' size; before `clean` also at the size of the model's training.
        constant_mode: the rows of constant mode, beside the token; `None` unless neurons are moved, the verdict is
            `"fixed"`, and the gate asked for it.
        constants: what the attentions of the last layers read in constant mode, `(L - l, D)`; `None` if not measured.
        on_other_weights: whether it lies beside a checkpoint with other weights than those that were measured: then it
            says nothing about that checkpoint.
    """

    register_neurons: tuple[RegisterNeuron, ...]
    scores: Tensor
    verdict: str
    norms: NormReport
    verification: Verification | None
    shift_value: str
    reasons: tuple[str, ...]
    selections: tuple[Selection, ...]
    candidates: tuple[Candidate, ...]
    convergence: Convergence | None
    config: CalibrationConfig
    chosen: tuple[str, ...]
    provenance: Provenance
    outlier_rule: OutlierRule
    looks: tuple[Look, ...]
    constant_mode: ConstantMode | None = None
    constants: Tensor | None = None
    fixed_positions: tuple[Place, ...] = ()
    on_other_weights: bool = False

    @property
    def moves_something(self) -> bool:
        """Whether there is anything to patch a model with: register neurons, or spikes of the position table."""
        return bool(self.register_neurons or self.fixed_positions)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that the neurons were found at."""
        return self.provenance.image_size

    def plot(self) -> "Figure":
        """Median and largest patch norm after each block, before and, where it was verified, after."""
        from ttreg_hf.pictures.norm_plots import NORMS_TITLE, plot_norms_per_block
        from ttreg_hf.pictures.numbers import counted

        norms, verification = self.norms, self.verification
        caption = f"{counted(norms.num_images, 'image')} inspected."
        if verification is not None:
            caption += (
                f" Largest norms, before and after: of {counted(verification.num_images, 'image')} that verified."
            )
        return plot_norms_per_block(
            norms.median,
            norms.max if verification is None else verification.max_norm_before,
            after=None if verification is None else (None, verification.max_norm_after),
            norm_threshold=norms.norm_threshold,
            detection_layer=norms.detection_layer,
            title=NORMS_TITLE,
            caption=caption,
        )

    @property
    def headline(self) -> str:
        """The verdict; where too few images are the reason, with that behind it."""
        return headline(self.verdict, self.reasons)

    @property
    def meaning(self) -> str:
        """What the verdict says, and what it does not say."""
        spikes_alone = bool(self.fixed_positions) and not self.register_neurons
        return meaning(self.verdict, self.looks, str(self.provenance.source), spikes_alone=spikes_alone)

    def was_found_on(self, model: PreTrainedModel, tower: str | None = None) -> bool:
        """Whether a model, stock or patched, has the weights that were measured, in whatever number format.

        Args:
            model: with the same trunk, with or without more around it.
            tower: dotted path of its vision tower, if it holds several.

        Raises:
            ValueError: a model of no supported family, or whose weights are not in memory.
        """
        measured = VisionTower.to_measure(model, name=tower, registers=False)
        return has_checksum(measured, self.provenance.weights)

    def check_weights(self, model: PreTrainedModel, tower: str | None = None) -> None:
        """Refuse a model with other weights than those that were measured; arguments as in `was_found_on`.

        Raises:
            ValueError: it has.
        """
        if not self.was_found_on(model, tower):
            raise ValueError(
                f"A calibration belongs to the weights that were measured, those of {self.provenance.model}, but "
                f"{model.name_or_path or type(model).__name__} has others. Calibrate it, or pass the calibration's "
                "`register_neurons` if you know that they fit."
            )

    def beside(self, model: PreTrainedModel) -> "CalibrationResult":
        """The same as it is saved beside a checkpoint of this model: it knows whether it speaks of its weights."""
        return dataclasses.replace(self, on_other_weights=not self.was_found_on(model))

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as JSON takes it."""
        return {
            "format": _FORMAT,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "register_neurons": [[n.layer, n.neuron, n.score] for n in self.register_neurons],
            "fixed_positions": [list(place) for place in self.fixed_positions],
            "shift_value": self.shift_value,
            "config": dataclasses.asdict(self.config),
            "chosen": list(self.chosen),
            "norms": dataclasses.asdict(self.norms),
            "verification": dataclasses.asdict(self.verification) if self.verification else None,
            "selections": [dataclasses.asdict(selection) for selection in self.selections],
            "candidates": [dataclasses.asdict(candidate) for candidate in self.candidates],
            "convergence": dataclasses.asdict(self.convergence) if self.convergence else None,
            "provenance": dataclasses.asdict(self.provenance),
            "outlier_rule": dataclasses.asdict(self.outlier_rule),
            "looks": [dataclasses.asdict(look) for look in self.looks],
            "constant_mode": dataclasses.asdict(self.constant_mode) if self.constant_mode else None,
            "on_other_weights": self.on_other_weights,
        }

    def save(self, directory: str | Path) -> None:
        """Write both files; each appears whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        described = json.dumps(self.to_dict(), indent=2) + "\n"  # before the first file: it may fail
        tensors = {"scores": self.scores, **({} if self.constants is None else {"constants": self.constants})}
        write_file(directory / TENSOR_FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        write_file(directory / JSON_FILE, described.encode())

    @classmethod
    def load(cls, directory: str | Path) -> "CalibrationResult":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder or a file is missing.
            ValueError: the files are of another format, or damaged.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(
                f"There is no folder {directory}. Give one that `ttreg calibrate MODEL --output DIR` wrote."
            )
        for name in (JSON_FILE, TENSOR_FILE):
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"A calibration is a folder with {JSON_FILE} and {TENSOR_FILE}, but {directory} has no {name}. "
                    "Make one with `ttreg calibrate MODEL --output DIR`."
                )
        again = "Calibrate again, or install the version of ttreg_hf that wrote it."
        fields = read_json(directory / JSON_FILE, remedy=again)
        if fields.get("format") != _FORMAT:
            raise ValueError(
                f"{directory / JSON_FILE} has format {fields.get('format')!r}, this version reads {_FORMAT}. {again}"
            )
        try:
            result = cls._of(fields, load_file(directory / TENSOR_FILE))
            check_consistency(result)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"The files in {directory} are not what `ttreg calibrate` writes ({type(error).__name__}: {error}). "
                "Calibrate again."
            ) from error
        return result

    @classmethod
    def _of(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "CalibrationResult":
        """What `to_dict` gave, with the tensors."""
        fields["register_neurons"] = [
            {"layer": layer, "neuron": neuron, "score": score} for layer, neuron, score in fields["register_neurons"]
        ]
        hints = typing.get_type_hints(cls)
        del hints["scores"], hints["constants"]
        read = {name: from_json(kind, fields[name], name=name) for name, kind in hints.items()}
        return cls(scores=tensors["scores"], constants=tensors.get("constants"), **read)
