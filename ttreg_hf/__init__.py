"""Test-time registers for pretrained Vision Transformers, as a plugin for the Hugging Face Hub.

`inspect_norms` tells whether a checkpoint has outlier tokens, `calibrate` finds the neurons that make them,
`add_test_time_registers` moves those neurons' activation to an extra token. Importing this package registers the
patched classes, so that `AutoModel.from_pretrained` loads patched checkpoints without `trust_remote_code`.

Nothing is imported before it is asked for; `__init__.pyi` lists the names. The patched classes are made by
`ttreg_hf.modeling.modeling_ttreg`.
"""

from types import ModuleType
from typing import Any

import lazy_loader
import wrapt

__version__ = "0.1.0rc1"
_lazy_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if "TTReg" not in name:
        return _lazy_name(name)
    from ttreg_hf.modeling import modeling_ttreg

    return getattr(modeling_ttreg, name)


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_with_auto_classes(configuration_auto: ModuleType) -> None:
    from ttreg_hf.known.auto_classes import register_stand_ins

    register_stand_ins(configuration_auto)


@wrapt.when_imported("ttreg_hf.modeling.modeling_ttreg")
def _furnish(modeling_ttreg: ModuleType) -> None:
    def publish(model: Any, repo_id: str, **options: Any) -> Any:
        from ttreg_hf.publishing.push import push_patched_model

        return push_patched_model(model, repo_id, **options)

    def stock_classes(stock_config: Any) -> dict[str, Any]:
        from ttreg_hf.known import auto_classes

        return auto_classes.stock_classes(stock_config)

    modeling_ttreg.TTRegModelMixin.publish = staticmethod(publish)
    modeling_ttreg.TTRegConfigMixin.stock_classes = staticmethod(stock_classes)
