"""Self-supervised pretraining with pretext tasks and fair probes, on Lightning and Hydra."""

from importlib import import_module
from typing import Any

# public names -> their modules, imported at first use, because the launcher must not load torch
_MODULES = {
    "as_backbone": "networks.adapter",
    "load_backbone": "artifacts.weights",
    "probe": "probes.api",
}

__all__ = ["as_backbone", "load_backbone", "probe"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
