"""The suitcase: model code that is installed here and copied to the Hub as it is.

Its three files import torch, transformers, huggingface_hub, the standard library and each other
(`from .name import x`), nothing else. This `__init__` does not travel.
"""
