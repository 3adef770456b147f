"""What every family shares: where a family keeps its parts, and the mixins that make a stock class a patched one.

Reads with `test_time_registers.py`, which holds the method itself.
"""

import difflib
import importlib
import inspect
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.versions import require_version

from .test_time_registers import SHIFT_FILLS, SHIFT_VALUES, NeuronShift, Registers, ShiftedGatedMLP, TokenLayout

# here, because every configuration file reads this one, and the config is made before any weight is read
require_version("transformers>=5.18", "Test-time registers need it: `pip install -U transformers`.")

_ACTIVATIONS = ("activation_fn", "act_fn", "intermediate_act_fn")


@dataclass(frozen=True)
class Family:
    """Where a family's trunk keeps its parts, as dotted paths below the trunk.

    Args:
        embeddings: the module whose output is the token sequence `(B, P + N, D)`.
        blocks: the list of transformer blocks.
        captures: the module whose output carries captured `hidden_states` and `attentions`; empty for the trunk.
        pooling_head: a head inside the trunk that attends to all tokens, if there is one.
        num_prefix_tokens: tokens in front of the patches, trained registers not counted.
        attention_mask: the argument of the trunk that says which tokens are not padding.
        detection_layer: block whose output shows the outlier tokens best in published checkpoints.
    """

    embeddings: str
    blocks: str
    captures: str = ""
    pooling_head: str | None = None
    num_prefix_tokens: int = 1
    attention_mask: str = "attention_mask"
    detection_layer: int = -1


# of families that also stand inside other models, by the model type of the tower's own config
TOWERS = {
    "clip_vision_model": Family(embeddings="embeddings", blocks="encoder.layers"),
    "dinov2": Family(embeddings="embeddings", blocks="encoder.layer", captures="encoder", detection_layer=-2),
    "dinov2_with_registers": Family(
        embeddings="embeddings", blocks="encoder.layer", captures="encoder", detection_layer=-2
    ),
    "dinov3_vit": Family(embeddings="embeddings", blocks="model.layer", captures="model"),
    "siglip_vision_model": Family(
        embeddings="embeddings", blocks="encoder.layers", pooling_head="head", num_prefix_tokens=0
    ),
    "vit": Family(embeddings="embeddings", blocks="layers"),
}


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
    """

    auto_classes: ClassVar[dict[str, str]] = {}
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

    def __post_init__(self, **kwargs: Any) -> None:
        ours = [field.name for field in fields(TTRegConfigMixin)]
        for name in kwargs:
            close = difflib.get_close_matches(name, ours, n=1, cutoff=0.85)
            if close and not hasattr(type(self), name):
                raise ValueError(f"`{name}` is not a field of {type(self).__name__}. Did you mean `{close[0]}`?")
        kwargs["auto_map"] = dict(self.auto_classes)
        super().__post_init__(**kwargs)
        # JSON has lists only; one form in memory keeps a saved and a fresh config equal
        self.register_neurons = [list(pair) if isinstance(pair, tuple) else pair for pair in self.register_neurons]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Of a checkpoint with both towers, the vision tower's part takes the fields of this mixin along."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        tower = config_dict.get(cls.base_config_key)
        if isinstance(tower, dict):
            ours = [field.name for field in fields(TTRegConfigMixin) if field.name in config_dict]
            tower |= {name: config_dict[name] for name in ours}
        return config_dict, kwargs

    def validate_register_neurons(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        layers = vision_config(self).num_hidden_layers
        seen = set()
        for pair in self.register_neurons:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(index) is int for index in pair)):
                raise ValueError(f"`register_neurons` holds [layer, neuron] pairs of whole numbers, got {pair!r}.")
            layer, neuron = pair
            if not 0 <= layer < layers:
                raise ValueError(
                    f"`register_neurons` names layer {layer}, but this model has {layers} layers (0 to {layers - 1}). "
                    "Recalibrate for this checkpoint, or pass the config it was calibrated with."
                )
            if neuron < 0:
                raise ValueError(f"`register_neurons` names neuron {neuron} of layer {layer}; neurons count from 0.")
            if (layer, neuron) in seen:
                raise ValueError(f"`register_neurons` names neuron {layer}/{neuron} twice. Give each neuron once.")
            seen.add((layer, neuron))

    def validate_shift_options(self) -> None:
        """Checked by `@strict` after construction and before saving."""
        if self.num_test_time_registers < 0:
            raise ValueError(f"`num_test_time_registers` is 0 or more, got {self.num_test_time_registers}.")
        for name, allowed in (("shift_value", SHIFT_VALUES), ("shift_fill", SHIFT_FILLS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is one of {', '.join(allowed)}, got {getattr(self, name)!r}.")


def vision_config(config: Any) -> Any:
    """The part of a config that describes the vision tower: of a model with more than that a part of its own."""
    return getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config


def tower_family(config: Any) -> Family:
    """Where the tower inside another model keeps its parts, by that model's config.

    Raises:
        ValueError: the tower is of a family that cannot be patched there, or there is none.
    """
    tower = vision_config(config)
    if tower is config or tower.model_type not in TOWERS:
        found = "no tower of its own" if tower is config else f"a tower of type {tower.model_type!r}"
        raise ValueError(
            f"A model of type {config.model_type!r} needs a vision tower of type {', '.join(TOWERS)}, got {found}. "
            "Patch a checkpoint whose tower is one of these."
        )
    return TOWERS[tower.model_type]


def find_mlp(block: nn.Module) -> tuple[Any, str]:
    """The module of a block that holds its activation function, and the activation's name."""
    return _find_child(block, _ACTIVATIONS, "an MLP")


def find_attention(block: nn.Module) -> Any:
    """The module of a block that projects to queries, keys and values."""
    return _find_child(block, ("q_proj",), "an attention")[0]


def _find_child(block: nn.Module, names: tuple[str, ...], what: str) -> tuple[Any, str]:
    for module in block.modules():
        for name in names:
            if name in dict(module.named_children()):
                return module, name
    held = ", ".join(name for name, _ in block.named_modules() if name)
    raise ValueError(
        f"Each block needs {what} with one of {', '.join(names)}, but {type(block).__name__} holds: {held}. "
        "This transformers release may have renamed it; please report it with the output of `ttreg env`."
    )


def down_projection(block: nn.Module) -> Any:
    """The MLP's second linear layer; a neuron is one of its inputs."""
    mlp, _ = find_mlp(block)
    return mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2


def is_gated(mlp: nn.Module) -> bool:
    return hasattr(mlp, "gate_proj")


def place_shift(block: nn.Module, neurons: list[int], registers: Registers) -> None:
    """Put the shift of these neurons into a block, instead of the one it may hold; none takes it out."""
    mlp, name = find_mlp(block)
    shift = NeuronShift(neurons, registers) if neurons else nn.Identity()
    if isinstance(mlp, ShiftedGatedMLP):
        mlp.shift = shift.train(mlp.training)
    elif is_gated(mlp):
        if neurons:
            parent, _, child = next(n for n, m in block.named_modules() if m is mlp).rpartition(".")
            setattr(block.get_submodule(parent), child, ShiftedGatedMLP(mlp, shift))
    else:
        activation = getattr(mlp, name)
        own = activation[0] if isinstance(activation, nn.Sequential) else activation
        setattr(mlp, name, nn.Sequential(own, shift).train(mlp.training) if neurons else own)


def neurons_by_layer(pairs: list[list[int]]) -> dict[int, list[int]]:
    """`[[layer, neuron], ...]` -> `{layer: [neuron, ...]}`, in the order given."""
    grouped: dict[int, list[int]] = {}
    for layer, neuron in pairs:
        grouped.setdefault(layer, []).append(neuron)
    return grouped


def num_prefix_tokens(family: Family, config: Any) -> int:
    return family.num_prefix_tokens + getattr(config, "num_register_tokens", 0)


class TTRegModelMixin(PreTrainedModel):
    """A stock model class with test-time registers: `class X(TTRegModelMixin, StockX)`."""

    family: ClassVar[Family | None] = None  # of a model around any tower: the tower's, by the config
    trunk_name: ClassVar[str] = ""  # dotted path of the trunk inside a model with a head
    is_backbone: ClassVar[bool] = False  # the trunk gives out feature maps

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # what makes `save_pretrained` copy the code; of a head that no Auto class loads it is the stock class's name
        heads = getattr(cls.config_class, "auto_classes", {}).items()
        cls._auto_class = next((auto for auto, name in heads if name.endswith(f".{cls.__name__}")), cls._auto_class)

    def post_init(self) -> None:
        """What every stock constructor ends with; so a patched class has the constructor of its stock class."""
        super().post_init()
        self.inherit_checkpoint_conversion()
        self.install_test_time_registers()

    def install_test_time_registers(self) -> None:
        """Register the hooks that insert and remove the tokens, and put the shift into the listed layers."""
        family = self.family_of(self.config)
        trunk: Any = self.get_submodule(self.trunk_name)
        size, arguments = trunk.config.patch_size, list(inspect.signature(trunk.forward).parameters)
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.registers = registers = Registers(
            self.config,
            TokenLayout(num_prefix_tokens(family, trunk.config), self.config.num_test_time_registers, size),
            backbone=self.is_backbone,
            mask_name=family.attention_mask,
            mask_place=arguments.index(family.attention_mask) if family.attention_mask in arguments else None,
        )
        trunk.register_forward_pre_hook(registers.before_trunk, with_kwargs=True)
        trunk.get_submodule(family.embeddings).register_forward_hook(registers.on_embeddings)
        # first of its hooks, because a backbone has one there already that captures the block's output
        trunk.get_submodule(family.blocks)[-1].register_forward_hook(registers.on_last_block, prepend=True)
        trunk.get_submodule(family.captures).register_forward_hook(registers.on_captured)
        if family.pooling_head is not None and hasattr(trunk, family.pooling_head):
            trunk.get_submodule(family.pooling_head).register_forward_pre_hook(registers.before_pooling)
        if self.is_backbone:
            trunk.register_forward_hook(registers.on_backbone)
        elif trunk is not self:
            trunk.register_forward_hook(registers.on_trunk)
        self._mask_hooks: list[Any] = []
        self.place_register_neurons()

    def place_register_neurons(self) -> None:
        """Put as many registers and the shift of such neurons into place as the config lists, and only those.

        Raises:
            ValueError: a neuron that its layer does not have.
        """
        config = self.registers.config
        self.registers.layout = replace(self.registers.layout, num_test_time_registers=config.num_test_time_registers)
        blocks: Any = self.get_submodule(self.trunk_name).get_submodule(self.family_of(config).blocks)
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
        for hook in self._mask_hooks:
            hook.remove()
        attentions = [find_attention(blocks[layer]) for layer in listed]
        tell = self.registers.before_attention
        self._mask_hooks = [each.register_forward_pre_hook(tell, with_kwargs=True) for each in attentions]

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
        """Within the block this is the base model, bit for bit. Nests; restores on error; is not saved."""
        registers = self.registers
        before, registers.enabled = registers.enabled, False
        try:
            yield self
        finally:
            registers.enabled = before

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As the stock class, but a key that only this class misses is an error, not a report.

        Raises:
            ValueError: weights that the stock class would have loaded were not loaded.
        """
        kwargs["output_loading_info"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        if any(info[kind] for kind in kinds):
            stock, ours = cls.stock_class(), {field.name for field in fields(TTRegConfigMixin)}
            kwargs = {name: value for name, value in kwargs.items() if name not in ours}
            expected = stock.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)[1]
            worse = {kind: sorted(map(str, set(info[kind]) - set(expected[kind]))) for kind in kinds}
            if any(worse.values()):
                found = "; ".join(f"{kind.replace('_', ' ')}: {keys}" for kind, keys in worse.items())
                raise ValueError(
                    f"{cls.__name__} must load the same weights as {stock.__name__}, but from "
                    f"{pretrained_model_name_or_path} it has {found}. Load with the stock class and use "
                    "`add_test_time_registers`."
                )
        return (model, info) if output_loading_info else model

    @classmethod
    def family_of(cls, config: Any) -> Family:
        """Where the trunk of a model with this config keeps its parts."""
        return cls.family or tower_family(config)

    @classmethod
    def stock_class(cls) -> Any:
        """The transformers class that this one extends."""
        return next(base for base in cls.__mro__ if not issubclass(base, TTRegModelMixin))

    @classmethod
    def inherit_checkpoint_conversion(cls) -> None:
        """Convert keys as the stock class does, so that old checkpoints load in full and are saved as they were."""
        stock = cls.stock_class()
        conversions = importlib.import_module("transformers.conversion_mapping")  # 4.x has none: not before the check
        known = (cls.__name__, stock.__name__, stock.config_class.model_type)
        own, *inherited = map(conversions.get_checkpoint_conversion_mapping, known)
        mapping = next(filter(None, inherited), None)
        if own is None and mapping is not None:
            conversions.register_checkpoint_conversion_mapping(cls.__name__, mapping)
