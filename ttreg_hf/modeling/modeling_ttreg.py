"""transformers' classes with test-time registers, each made from its name when it is first asked for.

What is left of `Dinov2TTRegModel` without `TTReg` is the stock class that it extends. Nothing of a stock class is
written again: the mixins below add fields to its config, and hooks and modules to its vision tower.
Tried with transformers 5.18 to 5.24.
Reads with `registers.py`, which holds the method, and `families.py`, which says where a tower keeps its parts.
"""

import importlib
import math
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.versions import require_version

from .families import blocks_of_trunk, family_of_trunk, layout_of_trunk, place_shifts, trunk_name
from .registers import SHIFT_FILLS, SHIFT_VALUES, Registers, TokenLayout

require_version("transformers>=5.18", "Test-time registers need it: `pip install -U transformers`.")
CONSTANTS = "test_time_register_constants"  # the buffer of the trunk, `(L - l, D)`


@dataclass(kw_only=True)
class TTRegConfigMixin:
    """Fields that a patched model's config adds to its base model's.

    Args:
        num_test_time_registers: extra empty tokens; 0 switches everything off.
        register_neurons: `[layer, neuron]` pairs, strongest first; layer and neuron are 0-based.
        shift_value: what a register gets: `"per_neuron"`, each neuron's signed max over the base model's tokens, or
            `"per_layer"`, one scalar for all the layer's register neurons (the paper's released code).
        shift_fill: what stays on the patches: `"zero"`, `"mean"`, `"outliers"` (only patches more than one standard
            deviation above the mean become the mean) or `"keep"`.
        shift_scale: factor on the value that the registers get.
        output_registers: keep the registers in `hidden_states`, `attentions` and a bare model's `last_hidden_state`.
        base_model_name_or_path: the checkpoint that was patched.
        base_model_revision: its commit.
        calibrated_patches: how many an image had where the neurons were found; far fewer or more are warned of.
        tower: dotted path of the vision tower that is patched, in a model that holds several.
        test_time_register_mode: `"token"`, or `"constant"`: neurons are zeroed on the patches, and each attention
            reads one more row, the same for every image, from the buffer `test_time_register_constants`.
        constant_first_layer: the first layer that reads such a row; 0-based.
        fixed_positions: `[row, column]` of rows of the learned position table that are spikes; what they have over
            their neighbours is taken from the patches, and the registers start with it.
    """

    _auto_class: ClassVar[str] = "AutoConfig"
    # what each Auto class loads for a stock config; set by ttreg_hf, and elsewhere read from config.json
    stock_classes: ClassVar[Callable[[Any], dict[str, Any]]] = staticmethod(lambda stock_config: {})

    num_test_time_registers: int = 1
    register_neurons: list | tuple = ()
    shift_value: str = "per_neuron"
    shift_fill: str = "zero"
    shift_scale: float | int = 1.0
    output_registers: bool = False
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    calibrated_patches: int | None = None
    tower: str | None = None
    test_time_register_mode: str = "token"
    constant_first_layer: int = 0
    fixed_positions: list | tuple = ()

    def __post_init__(self, **kwargs: Any) -> None:
        names = {auto: patched_name(stock) for auto, stock in type(self).stock_classes(stock_of(type(self))).items()}
        classes = {"AutoConfig": type(self).__name__, **names}
        ours = {auto: f"{__name__.rpartition('.')[2]}.{name}" for auto, name in classes.items()}
        kwargs["auto_map"] = {**kwargs.get("auto_map", {}), **ours}  # a saved head that no Auto class loads is there
        super().__post_init__(**kwargs)
        for name in ("register_neurons", "fixed_positions"):  # JSON has lists only: saved and fresh configs are equal
            setattr(self, name, [list(pair) if isinstance(pair, tuple) else pair for pair in getattr(self, name)])

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Of a checkpoint with both towers, the vision tower's part takes the fields of this mixin along."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        tower = config_dict.get(cls.base_config_key)
        if isinstance(tower, dict):
            tower |= {one.name: config_dict[one.name] for one in fields(TTRegConfigMixin) if one.name in config_dict}
        return config_dict, kwargs

    def validate_test_time_registers(self) -> None:
        """Checked by `@strict` after construction and before saving; what a model does not have, the model refuses."""
        for name, what in (("register_neurons", "[layer, neuron]"), ("fixed_positions", "[row, column]")):
            pairs = getattr(self, name)
            for wrong in (pair for index, pair in enumerate(pairs) if not _is_pair(pair) or pair in pairs[:index]):
                raise ValueError(f"`{name}` holds {what} pairs of whole numbers from 0, each once, got {wrong}.")
        shift = (self.shift_value, self.shift_fill, self.shift_scale, self.output_registers)
        is_plain = shift == ("per_neuron", "zero", 1, False) and self.num_test_time_registers <= 1
        fits = is_plain or self.test_time_register_mode != "constant"
        rules = {
            "`num_test_time_registers` is from 0 to 1024": 0 <= self.num_test_time_registers <= 1024,
            f"`shift_value` is one of {', '.join(SHIFT_VALUES)}": self.shift_value in SHIFT_VALUES,
            f"`shift_fill` is one of {', '.join(SHIFT_FILLS)}": self.shift_fill in SHIFT_FILLS,
            "`shift_scale` is a finite number": math.isfinite(self.shift_scale),
            "`test_time_register_mode` is token or constant": self.test_time_register_mode in ("token", "constant"),
            "`test_time_register_mode` is token where shift options are not the defaults, or registers several": fits,
            "`constant_first_layer` is 0 or more": self.constant_first_layer >= 0,
            "`output_registers` is False for this model, because its projector counts the tower's tokens (patch the "
            "tower alone to see them)": not self.output_registers or not hasattr(self, "vision_feature_layer"),
        }
        for rule in (rule for rule, holds in rules.items() if not holds):
            raise ValueError(f"{rule}, got {getattr(self, rule.split('`')[1])!r}.")


def _is_pair(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and len(given) == 2 and all(type(one) is int and one >= 0 for one in given)


class TTRegModelMixin(PreTrainedModel):
    """A stock model class with test-time registers in its vision tower: `class X(TTRegModelMixin, StockX)`."""

    trunk_name: str  # dotted path of the vision tower; "" for the model itself
    registers: Registers
    publish: ClassVar[Callable[..., Any] | None] = None  # set by ttreg_hf, which adds card and verification to a push

    def post_init(self) -> None:
        """What every stock constructor ends with; so a patched class has the constructor of its stock class."""
        super().post_init()
        self.inherit_checkpoint_conversion()
        self.install_test_time_registers()

    def _init_weights(self, module: Any) -> None:
        """As the stock method; constants that a checkpoint lacks are NaN, never something that was in memory."""
        super()._init_weights(module)
        if CONSTANTS in module._buffers:
            torch.nn.init.constant_(module.test_time_register_constants, math.nan)

    def install_test_time_registers(self) -> None:
        """Register the hooks that insert and remove the tokens, and put the shift into the listed layers.

        Raises:
            ValueError: no vision tower of a known family, or several of which none is chosen; or a neuron that a
                layer does not have.
        """
        self.trunk_name = trunk_name(self, self.config.tower)
        trunk: Any = self.get_submodule(self.trunk_name)
        family = family_of_trunk(trunk)
        is_bare = type(self).__name__.endswith("Model")  # it gives out what its trunk gives out, as OWL-ViT's
        around = [module for module in self.modules() if isinstance(module, transformers.BackboneMixin)]
        backbone = next((module for module in reversed(around) if trunk in module.modules()), None)
        registers = self.registers = Registers(self.config, layout_of_trunk(trunk), trunk, family, bool(backbone))
        trunk.register_forward_pre_hook(registers.before_trunk, with_kwargs=True)
        if family.encoder is None:
            trunk.get_submodule(family.embeddings).register_forward_hook(registers.on_embeddings)
        else:
            trunk.get_submodule(family.encoder).register_forward_pre_hook(registers.before_encoder, with_kwargs=True)
        # first of its hooks, because a backbone has one there already that captures the block's output
        blocks_of_trunk(trunk)[-1].register_forward_hook(registers.on_last_block, prepend=True)
        trunk.get_submodule(family.captures).register_forward_hook(registers.on_captured)
        if family.pooling_head is not None and hasattr(trunk, family.pooling_head):
            trunk.get_submodule(family.pooling_head).register_forward_pre_hook(registers.before_pooling)
        if backbone is not None:
            backbone.register_forward_hook(registers.on_backbone)
        elif family.patches is not None or not (trunk is self or (is_bare and trunk.config is self.config)):
            trunk.register_forward_hook(registers.on_trunk)
        if self.config.test_time_register_mode == "constant":
            rows = max(len(blocks_of_trunk(trunk)) - self.config.constant_first_layer, 0)
            trunk.register_buffer(CONSTANTS, torch.full((rows, trunk.config.hidden_size), math.nan))  # until loaded
        self.place_register_neurons()

    def place_register_neurons(self) -> None:
        """Put as many registers and the shift of such neurons into place as the config lists, and only those.

        To be called after mode, first layer or neurons of the config were changed; not while others record attentions.

        Raises:
            ValueError: a neuron or a layer that the model does not have.
        """
        config, trunk = self.registers.config, self.get_submodule(self.trunk_name)
        count = config.num_test_time_registers if config.test_time_register_mode == "token" else 0
        self.registers.layout = layout_of_trunk(trunk, count)
        place_shifts(blocks_of_trunk(trunk), neurons_by_layer(config.register_neurons), self.registers)

    @property
    def token_layout(self) -> TokenLayout:
        """Layout of the tokens in this model's outputs, with the config and the switch as they are now."""
        return self.registers.output_layout

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the test-time registers and patches: CLS, distillation and trained register tokens."""
        return self.registers.layout.num_prefix_tokens

    @contextmanager
    def disable_test_time_registers(self) -> Generator["TTRegModelMixin"]:
        """Within the block, and in this thread, this is the base model, bit for bit.

        Nests; restores on error; is not saved; a copy is on. A captured CUDA graph stays what it was captured as.
        """
        here, off_in, thread = self.registers.forward_pass, self.registers.off_in, threading.get_ident()
        before, here.enabled = here.enabled, False
        off_in.append(thread)
        try:
            yield self
        finally:
            here.enabled = before
            off_in.remove(thread)

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> Any:
        """As the stock method; says once if somebody put this model into another, which saves no registers."""
        if prefix and not prefix.startswith(("module.", "_orig_mod.", "base_model.")):
            what = f"{type(self).__name__} inside another model is saved without test-time registers; to keep them,"
            logging.get_logger(__name__).warning_once(f"{what} patch the whole: `add_test_time_registers(model)`.")
        return super().state_dict(*args, prefix=prefix, **options)

    def push_to_hub(self, repo_id: str, *args: Any, **options: Any) -> Any:
        """As the stock method; where ttreg_hf is imported, with card, processor and verification."""
        publish = type(self).publish
        return super().push_to_hub(repo_id, *args, **options) if publish is None else publish(self, repo_id, **options)

    @classmethod
    def inherit_checkpoint_conversion(cls) -> None:
        """Convert keys as the stock class does, so that old checkpoints load in full and are saved as they were."""
        conversion: Any = importlib.import_module("transformers.conversion_mapping")  # which an older release lacks
        known = (cls.__name__, stock_of(cls).__name__, stock_of(cls).config_class.model_type)
        mapping = next(filter(None, map(conversion.get_checkpoint_conversion_mapping, known)), None)
        if mapping is not None:
            conversion.register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)


def neurons_by_layer(pairs: list[list[int]]) -> dict[int, list[int]]:
    """`[[layer, neuron], ...]` -> `{layer: [neuron, ...]}`, in the order given."""
    return {layer: [neuron for other, neuron in pairs if other == layer] for layer, _ in pairs}


def stock_of(cls: type) -> Any:
    """The transformers class that a patched class extends."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))


def patched_name(stock: Any) -> str:
    """What the patched class of a stock model class is called: `Dinov2Model` -> `Dinov2TTRegModel`."""
    family = os.path.commonprefix([stock.__name__, stock.config_class.__name__.removesuffix("Config")])  # noqa: RUF071
    return f"{family}TTReg{stock.__name__.removeprefix(family)}"


def _config_class(name: str, stock: Any) -> Any:
    body = {"__module__": __name__, "__doc__": f"`{stock.__name__}` and the fields of `TTRegConfigMixin`."}
    return strict(type(name, (TTRegConfigMixin, stock), {**body, "model_type": f"{stock.model_type}_ttreg"}))


def _model_class(name: str, stock: Any) -> Any:
    config = stock.config_class.__name__.removesuffix("Config")
    # what makes `save_pretrained` copy the code; of a head that no Auto class loads it is the stock class's name
    autos = [auto for auto, found in TTRegConfigMixin.stock_classes(stock.config_class).items() if found is stock]
    body = {
        "__module__": __name__,
        "__doc__": f"`{stock.__name__}` with test-time registers in its vision tower; outputs as the stock class's.",
        "config_class": globals().get(f"{config}TTRegConfig") or __getattr__(f"{config}TTRegConfig"),
        "_auto_class": autos[0] if autos else stock.__name__,
    }
    return type(name, (TTRegModelMixin, stock), body)


def __getattr__(name: str) -> Any:
    """The class of this name, made once."""
    stock = getattr(transformers, name.replace("TTReg", "", 1), None) if "TTReg" in name else None
    for base, make in ((transformers.PreTrainedConfig, _config_class), (PreTrainedModel, _model_class)):
        if isinstance(stock, type) and issubclass(stock, base):
            return globals().setdefault(name, make(name, stock))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
