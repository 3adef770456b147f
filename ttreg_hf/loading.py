"""Loads base models and their image processors, with errors that say what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedModel
from transformers.utils import has_file
from transformers.utils.hub import cached_file, extract_commit_hash

from ttreg_hf.hub_access import explaining_access
from ttreg_hf.known.auto_classes import stock_classes
from ttreg_hf.known.checkpoints import known_checkpoint
from ttreg_hf.known.support import WHERE_TO_LOOK, patched_class, why_not_config
from ttreg_hf.modeling import modeling_ttreg
from ttreg_hf.modeling.families import base_model_type, trunk_names
from ttreg_hf.modeling.modeling_ttreg import patched_name, stock_of

_TOKENIZER = "tokenizer_config.json"
_OPTIONAL = "pooler"  # of a trunk: a layer on CLS that the blocks do not need, and many checkpoints lack


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint, and how it is loaded.

    Args:
        name_or_path: Hub id, or folder with `config.json` and weights.
        revision: branch, tag or commit on the Hub.
        token: for private or gated repositories.
        trust_remote_code: run model code that the repository brings.
        device: `None`: the first GPU, or the CPU.
        dtype: `None`: the checkpoint's.
        tower: dotted path of the vision tower that is meant, in a model that holds several.
    """

    name_or_path: str
    revision: str | None = None
    token: str | bool | None = None
    trust_remote_code: bool = False
    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    tower: str | None = None

    def model(self) -> PreTrainedModel:
        """See `load_model`; what goes wrong in other packages names the checkpoint too.

        Raises:
            FileNotFoundError: a folder without a checkpoint.
            ValueError: any other reason why it cannot be loaded.
        """
        try:
            model = load_model(self.name_or_path, device=self.device, dtype=self.dtype, **self._hub)
            if self.tower is not None:
                patched_class(model, self.tower)  # an error if it holds no such one
                model.config.tower = self.tower
            return model
        except (FileNotFoundError, PermissionError):  # say all that there is to say
            raise
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            text = str(error).strip().split("\n\n")[0]
            if self.name_or_path not in text:
                text = f"{self.name_or_path} cannot be loaded. {text}"
            if WHERE_TO_LOOK not in text:
                text += f"\nA model is a Hub id or a local folder; {WHERE_TO_LOOK}."
            raise ValueError(text) from error

    def processor(self) -> Any:
        """See `load_processor`."""
        return load_processor(self.name_or_path, **self._hub)

    def whole_processor(self, model: PreTrainedModel) -> Any:
        """See `load_whole_processor`."""
        return load_whole_processor(model, self.name_or_path, **self._hub)

    def commit(self) -> str | None:
        """See `commit_of`; the revision as given for a local folder."""
        return commit_of(self.name_or_path, revision=self.revision, token=self.token) or self.revision

    @property
    def _hub(self) -> dict[str, Any]:
        return {"revision": self.revision, "token": self.token, "trust_remote_code": self.trust_remote_code}


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in eval mode, by Hub id or path, of the class that its checkpoint names: a head stays a head.

    Of a checkpoint whose head was not saved it is the bare model. A pooling layer that was not saved is left out.
    So nothing in it is newly initialised.

    Args:
        name_or_path: Hub id, or folder with `config.json` and weights.
        revision: branch, tag or commit on the Hub.
        token: for private or gated repositories.
        device: `None`: the first GPU, or the CPU.
        dtype: `None`: the checkpoint's.
        trust_remote_code: run model code that the repository brings.

    Raises:
        FileNotFoundError: no such folder, or one without a checkpoint.
        PermissionError: a gated repository that does not let this account in.
        ValueError: a model that cannot be patched, or weights that are missing.
        OSError: from transformers, naming what is missing on the Hub.
    """
    _check_folder(name_or_path)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    with explaining_access(name_or_path):
        config = _config(name_or_path, hub)
    reason = why_not_config(config)
    if reason is not None:
        raise ValueError(
            f"{name_or_path} is a model of type {config.model_type!r}, which cannot be given test-time registers: "
            f"{reason}. {WHERE_TO_LOOK}."
        )
    hub |= {"dtype": dtype or "auto"}
    named = saved_class(config)
    model, missing = _load(named, name_or_path, hub)
    if missing and (bare := _bare_class(named)) is not named:
        model, missing = _load(bare, name_or_path, hub)
    if missing:
        raise ValueError(
            f"{name_or_path} must hold all weights of a {type(model).__name__}, but {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} ({len(missing)} in all) are missing or of another shape, and "
            "would be random. Save the checkpoint again, with the names that transformers gives."
        )
    return model.eval().to(device or default_device())


def as_model(
    model_or_id: Any, *, revision: str | None = None, device: str | torch.device | None = None
) -> PreTrainedModel:
    """A model, wherever a model or its Hub id or path may be given.

    Args:
        model_or_id: a model, which is taken as it is, or its Hub id or path, which is loaded.
        revision: of an id.
        device: to load an id to; `None`: the first GPU, or the CPU.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """
    if not isinstance(model_or_id, (str, Path)):
        return model_or_id
    return load_model(str(model_or_id), revision=revision, device=device)


def model_and_processor(
    model_or_id: Any,
    processor: Any = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """As `as_model`, with the image processor: the one given, else that of the id or path; of a model none."""
    model = as_model(model_or_id, revision=revision, device=device)
    if processor is None and isinstance(model_or_id, (str, Path)):
        processor = load_processor(str(model_or_id), revision=revision)
    return model, processor


def saved_class(config: Any) -> Any:
    """The class that a checkpoint with this config was saved from; if it names none, what its first Auto class loads.

    Raises:
        ValueError: it names a class of which there is no patched one.
    """
    name = (getattr(config, "architectures", None) or [None])[0]
    if config.model_type == base_model_type(config):
        found = getattr(transformers, str(name), None)
        return found or next(iter(stock_classes(type(config)).values()))
    if name is None:
        name = patched_name(next(iter(stock_classes(stock_of(type(config))).values())))
    found = getattr(modeling_ttreg, name, None) if "TTReg" in name else None
    if found is None:
        raise ValueError(
            f"`architectures` names a class of ttreg_hf, such as Dinov2TTRegModel, got {name!r}. Update ttreg_hf, or "
            "make the checkpoint again."
        )
    return found


def load_processor(
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The image processor of a checkpoint; `None` where the checkpoint has none."""
    try:
        return AutoImageProcessor.from_pretrained(
            name_or_path, revision=revision, token=token, trust_remote_code=trust_remote_code
        )
    except OSError:
        return None


def load_whole_processor(
    model: PreTrainedModel,
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """What lies beside a checkpoint of this model: its image processor, with the tokenizer if the model reads text.

    `None` where the checkpoint has none.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    # without this file AutoProcessor makes up a tokenizer that knows no words
    if "text" in model.input_modalities and has_file(name_or_path, _TOKENIZER, revision=revision, token=token):
        return AutoProcessor.from_pretrained(name_or_path, **hub)
    return load_processor(name_or_path, **hub)


def commit_of(name_or_path: str, *, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """The commit of a checkpoint on the Hub that a branch or tag stands for; `None` for a local folder.

    Asks for its config.json, which is in the cache once the checkpoint has been loaded.

    Raises:
        OSError: from transformers, naming what is missing on the Hub.
    """
    path = cached_file(name_or_path, "config.json", revision=revision, token=token)
    return None if Path(name_or_path).is_dir() else extract_commit_hash(path, None)


def is_hub_id(name: str | None) -> bool:
    """Whether this is `namespace/name`, and not a path that exists here."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(name: str) -> None:
    """Nothing, if this machine has a device of this name, such as `cuda:1`.

    Raises:
        ValueError: it has none.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without this kind of device
        names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(
            f"`--device` names a device of this machine, got {name!r}. Here: {', '.join(names)}."
        ) from error


def _load(cls: Any, name_or_path: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """A model, and the names of its weights that are missing; without a pooling layer whose weights are."""
    model, info = cls.from_pretrained(name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    missing = {str(key[0] if isinstance(key, tuple) else key) for kind in _LOST for key in info[kind]}
    for trunk in trunk_names(model):
        prefix = f"{trunk}.{_OPTIONAL}." if trunk else f"{_OPTIONAL}."
        pooler = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
        if pooler and pooler <= missing:
            setattr(model.get_submodule(trunk), _OPTIONAL, None)
            missing -= pooler
    return model, sorted(missing)


_LOST = ("missing_keys", "mismatched_keys")


def _bare_class(cls: Any) -> Any:
    """What `AutoModel` loads of the same checkpoint, patched if the class is."""
    is_patched = cls.__module__ == modeling_ttreg.__name__
    stock = stock_classes(stock_of(cls).config_class)["AutoModel"]
    return getattr(modeling_ttreg, patched_name(stock)) if is_patched else stock


def _config(name_or_path: str, hub: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(name_or_path, **hub)
    except ImportError as error:  # timm is not installed, and would not help
        if "timm" not in str(error):
            raise
        return _TimmConfig()


class _TimmConfig:
    model_type = "timm_wrapper"


def check_is_there(name_or_path: str) -> None:
    """Refuse a path that leads nowhere, without asking the Hub.

    Raises:
        FileNotFoundError: there is no such folder, and it is no name that the Hub could have.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return
    if path.exists():
        raise FileNotFoundError(f"A checkpoint is a folder, but {name_or_path} is a file. Give its folder.")
    is_beside_others = path.parent.is_dir() and known_checkpoint(name_or_path) is None
    if is_beside_others or not is_hub_id(name_or_path):
        raise FileNotFoundError(
            f"There is no folder {name_or_path}. Give the path of one that is there, or a Hub id such as ORG/NAME."
        )


def _check_folder(name_or_path: str) -> None:
    check_is_there(name_or_path)
    if (path := Path(name_or_path)).is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"A checkpoint folder holds config.json and weights, but {path} has no config.json. "
            "Give the folder that `save_pretrained` wrote, or a Hub id."
        )
