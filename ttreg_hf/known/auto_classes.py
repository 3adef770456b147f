"""Lets transformers' Auto classes load patched checkpoints in this process without `trust_remote_code`.

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
def known_config_class(name: str) -> Any:
    """The patched config class of a stock one's name, known with its model classes to the Auto classes from now on."""
    import transformers

    from ttreg_hf.modeling import modeling_ttreg as made

    config_class = getattr(made, f"{name.removesuffix('Config')}TTRegConfig")
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto, stock in made.stock_classes(made.stock_of(config_class)).items():
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
