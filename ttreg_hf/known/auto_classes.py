"""What transformers' Auto classes load, and how they come to load patched checkpoints without a flag.

A stand-in is registered for the patched type of every model type that transformers knows. The classes are made when a
checkpoint of their type comes.
"""

import functools
from types import ModuleType
from typing import Any


def register_stand_ins(configuration_auto: ModuleType) -> None:
    """To be called with transformers' module of that name, once it is there; imports nothing."""
    for model_type, name in configuration_auto.CONFIG_MAPPING_NAMES.items():
        configuration_auto.AutoConfig.register(f"{model_type}_ttreg", _stand_in(name), exist_ok=True)


@functools.cache
def stock_classes(stock_config: Any) -> dict[str, Any]:
    """The model classes that transformers' Auto classes load for a stock config, by the name of the Auto class.

    One that no Auto class knows, such as CLIP's tower inside MetaCLIP 2, is what `AutoModel` loads.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    found = {}
    for auto in dir(modeling_auto):  # that of transformers takes long
        if auto.startswith(("AutoModel", "AutoBackbone")):
            stock: Any = getattr(getattr(modeling_auto, auto), "_model_mapping", {}).get(stock_config, None)
            stock = stock[0] if isinstance(stock, tuple) else stock
            if stock is not None and stock.config_class is stock_config:  # not the backbone inside TIPSv2
                found[auto] = stock
    bare = getattr(transformers, f"{stock_config.__name__.removesuffix('Config')}Model", None)
    return found if "AutoModel" in found or bare is None else {"AutoModel": bare, **found}


@functools.cache
def known_config_class(name: str) -> Any:
    """The patched config class of a stock one's name, known with its model classes to the Auto classes from now on."""
    import transformers

    from ttreg_hf.modeling import modeling_ttreg as made

    config_class = getattr(made, f"{name.removesuffix('Config')}TTRegConfig")
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto, stock in stock_classes(made.stock_of(config_class)).items():
        getattr(transformers, auto).register(config_class, getattr(made, made.patched_name(stock)), exist_ok=True)
    return config_class


def _stand_in(name: str) -> type:
    class ConfigToCome:
        """What `AutoConfig` knows of a model type until it meets a checkpoint of it."""

        def __new__(cls, *args: Any, **fields: Any) -> Any:
            return known_config_class(name)(*args, **fields)

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> Any:
            return known_config_class(name).from_dict(*args, **options)

    return ConfigToCome
