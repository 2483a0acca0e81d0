"""Callbacks that watch a run and never change its training."""

from importlib import import_module
from typing import Any

# public names -> their modules, imported at first use, because the pictures import matplotlib
_MODULES = {
    "Collapse": "collapse",
    "HealthGuard": "health",
    "OnlineKNN": "online_knn",
    "PanelPicture": "panel",
    "Throughput": "throughput",
}

__all__ = ["Collapse", "HealthGuard", "OnlineKNN", "PanelPicture", "Throughput"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
