"""transformers' classes with test-time registers, each made from its name when it is first asked for.

What is left of `Dinov2TTRegModel` without `TTReg` is the stock class that it extends. Nothing of a stock class is
written again: the mixins below add fields to its config, and hooks and modules to its vision tower.
Reads with `registers.py`, which holds the method, and `families.py`, which says where a tower keeps its parts.
"""

import functools
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging
from transformers.utils.versions import require_version

from .families import (
    blocks_of_trunk,
    down_projection,
    family_of_trunk,
    find_attention,
    layout_of_trunk,
    place_shift,
    tower_configs,
    trunk_name,
)
from .registers import SHIFT_FILLS, SHIFT_VALUES, Registers, TokenLayout

try:
    from transformers import conversion_mapping
    from transformers.backbone_utils import BackboneMixin
finally:  # before anybody wonders what an older release lacks
    require_version("transformers>=5.18", "Test-time registers need it: `pip install -U transformers`.")


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
    """

    _auto_class: ClassVar[str] = "AutoConfig"

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

    def __post_init__(self, **kwargs: Any) -> None:
        cls = type(self)
        classes = {"AutoConfig": cls.__name__}
        classes |= {auto: patched_name(stock) for auto, stock in stock_classes(stock_of(cls)).items()}
        ours = {auto: f"{__name__.rpartition('.')[2]}.{name}" for auto, name in classes.items()}
        kwargs["auto_map"] = {**kwargs.get("auto_map", {}), **ours}  # a saved head that no Auto class loads is there
        super().__post_init__(**kwargs)
        # JSON has lists only; one form in memory keeps a saved and a fresh config equal
        self.register_neurons = [list(pair) if isinstance(pair, tuple) else pair for pair in self.register_neurons]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Of a checkpoint with both towers, the vision tower's part takes the fields of this mixin along."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        tower = config_dict.get(cls.base_config_key)
        if isinstance(tower, dict):
            ours = {field.name for field in fields(TTRegConfigMixin)} & config_dict.keys()
            tower |= {name: config_dict[name] for name in ours}
        return config_dict, kwargs

    def validate_register_neurons(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        layers = max((tower.num_hidden_layers for tower in tower_configs(self)), default=0)
        for index, pair in enumerate(self.register_neurons):
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(part) is int for part in pair)):
                raise ValueError(f"`register_neurons` holds [layer, neuron] pairs of whole numbers, got {pair!r}.")
            layer, neuron = pair
            if neuron < 0:
                raise ValueError(f"`register_neurons` names neuron {neuron} of layer {layer}; neurons count from 0.")
            if not 0 <= layer < layers:
                raise ValueError(
                    f"`register_neurons` names layer {layer}, but this model has {layers} layers (0 to {layers - 1}). "
                    "Recalibrate for this checkpoint, or pass the config it was calibrated with."
                )
            if list(pair) in map(list, self.register_neurons[:index]):
                raise ValueError(f"`register_neurons` names neuron {layer}/{neuron} twice. Give each neuron once.")

    def validate_shift_options(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        if not 0 <= self.num_test_time_registers <= 1024:
            raise ValueError(f"`num_test_time_registers` is from 0 to 1024, got {self.num_test_time_registers}.")
        if not math.isfinite(self.shift_scale):
            raise ValueError(f"`shift_scale` is a finite number, got {self.shift_scale}.")
        for name, allowed in (("shift_value", SHIFT_VALUES), ("shift_fill", SHIFT_FILLS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is one of {', '.join(allowed)}, got {getattr(self, name)!r}.")

    def validate_output_registers(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        if self.output_registers and hasattr(self, "vision_feature_layer"):
            raise ValueError(
                "`output_registers` is False for this model, because its projector reads the tower's hidden states "
                "and counts their tokens, got True. Patch the vision tower alone to see the registers."
            )


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

    def install_test_time_registers(self) -> None:
        """Register the hooks that insert and remove the tokens, and put the shift into the listed layers.

        Raises:
            ValueError: no vision tower of a known family, or several of which none is chosen; or a neuron that a
                layer does not have.
        """
        self.trunk_name = trunk_name(self, self.config.tower)
        trunk: Any = self.get_submodule(self.trunk_name)
        family = family_of_trunk(trunk)
        around = [module for module in self.modules() if isinstance(module, BackboneMixin)]
        backbone = next((module for module in reversed(around) if trunk in module.modules()), None)
        layout = layout_of_trunk(trunk, self.config.num_test_time_registers)
        arguments = list(inspect.signature(trunk.forward).parameters)
        registers = self.registers = Registers(self.config, layout, family, backbone is not None, arguments)
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
        elif family.patches is not None or not (trunk is self or self._only_wraps(trunk)):
            trunk.register_forward_hook(registers.on_trunk)
        for block in blocks_of_trunk(trunk):
            find_attention(block).register_forward_pre_hook(registers.before_attention, with_kwargs=True)
        self.place_register_neurons()

    def _only_wraps(self, trunk: Any) -> bool:
        """Whether this is a bare model, which gives out what its trunk gives out, as OWL-ViT's is."""
        stock = stock_of(type(self))
        return trunk.config is self.config and stock_classes(stock.config_class).get("AutoModel") is stock

    def place_register_neurons(self) -> None:
        """Put as many registers and the shift of such neurons into place as the config lists, and only those.

        Raises:
            ValueError: a neuron that its layer does not have.
        """
        config, blocks = self.registers.config, blocks_of_trunk(self.get_submodule(self.trunk_name))
        self.registers.layout = replace(self.registers.layout, num_test_time_registers=config.num_test_time_registers)
        listed = neurons_by_layer(config.register_neurons)
        for layer, neurons in listed.items():
            width = down_projection(blocks[layer]).in_features
            if max(neurons) >= width:
                raise ValueError(
                    f"`register_neurons` names neuron {max(neurons)} of layer {layer}, but its MLP has {width} (0 to "
                    f"{width - 1}). Recalibrate for this checkpoint, or pass the config it was calibrated with."
                )
        for layer, block in enumerate(blocks):
            place_shift(block, listed.get(layer, []), self.registers)

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
            logging.get_logger(__name__).warning_once(
                f"A {type(self).__name__} inside another model is saved as the stock one, without test-time registers."
                " Patch the whole model to keep them: `add_test_time_registers(model, register_neurons)`."
            )
        return super().state_dict(*args, prefix=prefix, **options)

    def push_to_hub(self, repo_id: str, *args: Any, **options: Any) -> Any:
        """As the stock method; where ttreg_hf is imported, with card, processor and verification."""
        publish = type(self).publish
        return super().push_to_hub(repo_id, *args, **options) if publish is None else publish(self, repo_id, **options)

    @classmethod
    def inherit_checkpoint_conversion(cls) -> None:
        """Convert keys as the stock class does, so that old checkpoints load in full and are saved as they were."""
        stock = stock_of(cls)
        known = (cls.__name__, stock.__name__, stock.config_class.model_type)
        own, *inherited = map(conversion_mapping.get_checkpoint_conversion_mapping, known)
        mapping = next(filter(None, inherited), None)
        if own is None and mapping is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(cls.__name__, mapping)


def neurons_by_layer(pairs: list[list[int]]) -> dict[int, list[int]]:
    """`[[layer, neuron], ...]` -> `{layer: [neuron, ...]}`, in the order given."""
    return {layer: [neuron for other, neuron in pairs if other == layer] for layer, _ in pairs}


def stock_of(cls: type) -> Any:
    """The transformers class that a patched class extends."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))


def patched_name(stock: Any) -> str:
    """What the patched class of a stock model class is called: `Dinov2Model` -> `Dinov2TTRegModel`."""
    pairs = zip(stock.__name__, stock.config_class.__name__.removesuffix("Config"), strict=False)
    family = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f"{family}TTReg{stock.__name__.removeprefix(family)}"


@functools.cache
def stock_classes(stock_config: Any) -> dict[str, Any]:
    """The model classes that transformers' Auto classes load for a stock config, by the name of the Auto class.

    One that no Auto class knows, such as CLIP's tower inside MetaCLIP 2, is what `AutoModel` loads.
    """
    found = {}
    for auto in dir(modeling_auto):  # that of transformers takes long
        if auto.startswith(("AutoModel", "AutoBackbone")):
            stock: Any = getattr(getattr(modeling_auto, auto), "_model_mapping", {}).get(stock_config, None)
            stock = stock[0] if isinstance(stock, tuple) else stock
            if stock is not None and stock.config_class is stock_config:  # not the backbone inside TIPSv2
                found[auto] = stock
    bare = getattr(transformers, f"{stock_config.__name__.removesuffix('Config')}Model", None)
    return found if "AutoModel" in found or bare is None else {"AutoModel": bare, **found}


def _config_class(name: str, stock: Any) -> Any:
    body = {"__module__": __name__, "__doc__": f"`{stock.__name__}` and the fields of `TTRegConfigMixin`."}
    return strict(type(name, (TTRegConfigMixin, stock), {**body, "model_type": f"{stock.model_type}_ttreg"}))


def _model_class(name: str, stock: Any) -> Any:
    config = stock.config_class.__name__.removesuffix("Config")
    # what makes `save_pretrained` copy the code; of a head that no Auto class loads it is the stock class's name
    autos = [auto for auto, found in stock_classes(stock.config_class).items() if found is stock]
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
    for base, make in ((PreTrainedConfig, _config_class), (PreTrainedModel, _model_class)):
        if isinstance(stock, type) and issubclass(stock, base):
            return globals().setdefault(name, make(name, stock))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
