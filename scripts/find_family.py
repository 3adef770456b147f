#!/usr/bin/env python
"""Finds out whether a kind of model can be given test-time registers, and prints its line for `FAMILIES`.

`python scripts/find_family.py vit` builds a tiny random model of that type, looks for its blocks, its embeddings, the
tokens in front of the patches and its masks, patches it by each line that may be right, and compares it with the stock
model. The first line that passes is printed; else the reason why none does (exit code 1).
"""

import inspect
import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

import torch
from benchmarks.tiny_models import LAYERS, PATCH, PATCHES, SIDE, NotAFamily, run_tiny, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.families import FAMILIES, Family, down_projection, find_attention

NEURONS = [[0, 5], [1, 3], [1, 8], [2, 1]]
_COUNTS = ("cls", "register", "prefix", "summary", "distill")  # in names of fields that count tokens before patches


def find_family(model_type: str) -> Family:
    """The line that describes a type.

    Raises:
        NotAFamily: there is none; says why.
    """
    model = tiny_model(model_type)
    path, blocks = _blocks(model)
    trunk_path = _trunk_path(model, path)
    trunk: Any = model.get_submodule(trunk_path)
    path = path.removeprefix(trunk_path).removeprefix(".")
    count, embeddings = _watch(model, trunk, blocks)
    prefix = _prefix(model_type, count - PATCHES)
    parent = path.rpartition(".")[0]
    heads = [name for name, module in trunk.named_children() if _attends(module, blocks)]
    models, reasons = [model, *_backbone(model_type)], []
    for captures, encoder in itertools.product(dict.fromkeys(("", parent)), dict.fromkeys((None, parent or None))):
        family = Family(path, prefix, embeddings, encoder, captures, heads[0] if heads else None)
        for mask in _masks(trunk, count):
            family = replace(family, mask=mask) if encoder is None else family
        differences = (why_not(model_type, each, family) for each in models)
        reason = next((difference for difference in differences if difference is not None), None)
        if reason is None:
            return family
        reasons.append(reason)
    raise NotAFamily(reasons[0])


def _backbone(model_type: str) -> list[PreTrainedModel]:
    try:
        return [tiny_model(model_type, backbone=True)]
    except NotAFamily:
        return []


def line(model_type: str, family: Family) -> str:
    """As it stands in `FAMILIES`: what is not the default."""
    given = [
        f"{field.name}={getattr(family, field.name)!r}"
        for field in fields(Family)
        if field.name != "blocks" and getattr(family, field.name) != field.default
    ]
    return (
        f'    "{model_type}": Family({", ".join([repr(family.blocks).replace(chr(39), chr(34)), *given])}),'.replace(
            "'", '"'
        )
    )


def why_not(model_type: str, stock: PreTrainedModel, family: Family) -> str | None:
    """What goes wrong with a line, as half a sentence; `None` if nothing does."""
    before = FAMILIES.get(model_type)
    FAMILIES[model_type] = family
    try:
        return _difference(stock)
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        return f"patched with {family} it stops: {str(error).strip().splitlines()[0]}"
    finally:
        FAMILIES.pop(model_type) if before is None else FAMILIES.update({model_type: before})


def _difference(stock: PreTrainedModel) -> str | None:
    expected = _tensors(run_tiny(stock))
    patched = add_test_time_registers(stock, NEURONS)
    found = _tensors(run_tiny(patched))
    with patched.disable_test_time_registers():
        off = _tensors(run_tiny(patched))
    if not all(torch.equal(off[name], tensor) for name, tensor in expected.items()):
        return "switched off it is not the stock model"
    many = _tensors(run_tiny(add_test_time_registers(stock, NEURONS, num_test_time_registers=3)))
    if any(_shapes(each) != _shapes(expected) for each in (found, many)):
        return "its outputs have other shapes than the stock model's: something in it counts the tokens"
    if _are_close(found, expected):
        return "its outputs are the stock model's: nothing is moved"
    if _are_close(
        _tensors(run_tiny(add_test_time_registers(stock, NEURONS, shift_fill="keep", shift_scale=0.0))), expected
    ):
        return "one more token changes nothing: its tokens do not see each other"
    alone = _tensors(run_tiny(patched, count=1))
    if not _are_close(alone, {name: tensor[:1] for name, tensor in found.items()}):
        return "an image alone gives other outputs than in a batch"
    tower = VisionTower.of(patched)
    for name, mask in _masks(tower.trunk, tower.base_layout.num_prefix_tokens + PATCHES).items():
        one, other = (run_tiny(tower.trunk, padding=padding, mask={name: mask}) for padding in (0.0, 9.0))
        seen = [output.hidden_states[-1][:, : -PATCHES // 4] for output in (one, other)]
        if not torch.allclose(*seen, atol=1e-4):
            return f"with `{name}` what padding holds changes the other tokens"
    return None


def _masks(trunk: Any, count: int) -> dict[str, Tensor]:
    """The last row of patches as padding, by the trunk's arguments of that kind and in the form that each takes."""
    masks = {}
    for name in inspect.signature(trunk.forward).parameters:
        if name.endswith("attention_mask"):
            shape = (2, SIDE // PATCH, SIDE // PATCH) if name.startswith("patch_") else (2, count)
            mask = torch.ones(shape, dtype=torch.bool)
            mask.view(2, -1)[:, -PATCHES // 4 :] = False
            masks[name] = mask
    return masks


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _are_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], tensor, atol=1e-4) for name, tensor in other.items())


def _tensors(output: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of an output, named."""
    if isinstance(output, Tensor):
        return {name: output}
    parts = output.items() if isinstance(output, dict) else enumerate(output if output is not None else ())
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= _tensors(part, f"{name}.{key}".removeprefix("."))
    return found


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the blocks.

    Raises:
        NotAFamily: none, or their attention or MLP is of an unknown kind.
    """
    lists = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    lists = [(name, each) for name, each in lists if len(each) == LAYERS]
    if not lists:
        raise NotAFamily(f"it has no list of {LAYERS} blocks (stages of blocks are not one)")
    name, blocks = lists[0]
    try:
        find_attention(blocks[0])
        down_projection(blocks[0])
    except (ValueError, AttributeError) as error:
        raise NotAFamily(f"its blocks are of another kind: {str(error).split(', but')[0]}") from error
    return name, blocks


def _trunk_path(model: nn.Module, blocks: str) -> str:
    """The innermost model of transformers around the blocks that has embeddings too."""
    paths = [path for path in _outwards(blocks) if isinstance(model.get_submodule(path), PreTrainedModel)]
    having = [path for path in paths if hasattr(model.get_submodule(path), "embeddings")]
    return (having or paths)[0]


def _outwards(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _watch(model: Any, trunk: nn.Module, blocks: nn.ModuleList) -> tuple[int, str]:
    """How many tokens blocks see, and the path of the module that makes them.

    Raises:
        NotAFamily: it does not run, or its tokens are not `(B, T, D)`.
    """
    seen: dict[str, Any] = {"made": {}}
    names = {module: name for name, module in trunk.named_modules()}
    inside = set(blocks.modules())

    def on_block(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("hidden_states")
        seen.setdefault("tokens", tokens)

    def on_module(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 3 and "tokens" not in seen:
            seen["made"].setdefault(output.shape, []).append(names[module])

    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(on_block, with_kwargs=True).remove)
        for module in trunk.modules():
            if module not in inside:
                hooks.callback(module.register_forward_hook(on_module).remove)
        try:
            run_tiny(model)
        except Exception as error:
            raise NotAFamily(f"it does not take one image tensor alone: {str(error).splitlines()[0]}") from error
    tokens = seen.get("tokens")
    if tokens is None or tokens.ndim != 3:
        raise NotAFamily("its blocks do not read one sequence of tokens an image: they keep the image's two axes")
    made = [name for name in seen["made"].get(tokens.shape, []) if "norm" not in name]
    if not made:
        raise NotAFamily("no module makes the tokens that its blocks read, so that none could be added there")
    return tokens.shape[1], min(made, key=lambda name: name.count("."))


def _prefix(model_type: str, count: int) -> tuple[int | str, ...]:
    """Numbers and fields of the config that add up to the tokens that are no patches.

    Raises:
        NotAFamily: fewer tokens than patches.
    """
    if count < 0:
        raise NotAFamily(f"its blocks see {count + PATCHES} tokens of {PATCHES} patches: it merges or pools them")
    config = tiny_model(model_type).config
    counted = []
    for name in vars(config):
        value = getattr(config, name)
        if type(value) is int and any(part in name for part in _COUNTS):
            try:
                changed = tiny_model(model_type, changed={name: value + 1})
                more = _watch(
                    changed, changed.get_submodule(_trunk_path(changed, _blocks(changed)[0])), _blocks(changed)[1]
                )
            except (NotAFamily, RuntimeError, ValueError):
                continue
            counted += [name] if more[0] == count + PATCHES + 1 else []
    rest = count - sum(getattr(config, name) for name in counted)
    return (*((rest,) if rest else ()), *counted)


def _attends(module: nn.Module, blocks: nn.ModuleList) -> bool:
    """Whether a module beside the blocks attends to all tokens, as a pooling head does."""
    if any(each is blocks for each in module.modules()):
        return False
    kinds = [type(each) for each in module.modules()]
    return any("Attention" in kind.__name__ or "Pooling" in kind.__name__ for kind in kinds)


def main(model_types: list[str]) -> None:
    """Print a line or a reason for each type."""
    found = True
    for model_type in model_types:
        try:
            print(line(model_type, find_family(model_type)))
        except NotAFamily as error:
            found = False
            print(f"{model_type}: cannot be given test-time registers: {str(error).removesuffix('.')}.")
    if not found or not model_types:
        sys.exit(1 if model_types else __doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
