"""Self-supervised pretraining with pretext tasks and fair probes, on Lightning and Hydra."""

from typing import Any

__all__ = ["load_backbone"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_backbone":  # lazy: the launcher imports this package and must not load torch
        from ssl_lightning.artifacts.weights import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
