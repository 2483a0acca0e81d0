"""Self-supervised pretraining with pretext tasks and fair probes, on Lightning and Hydra."""

from importlib import import_module
from typing import Any

# public names -> their modules, imported at first use, because the launcher must not load torch
_MODULES = {
    "AdversarialTask": "tasks._adversarial",
    "BackboneProbe": "probes.base",
    "BarlowTwins": "tasks.barlow_twins",
    "Colorization": "tasks.colorization",
    "Combined": "tasks.combined",
    "ContextPrediction": "tasks.context_prediction",
    "ImageData": "data.objects.image_data",
    "ImageSpec": "core.image_spec",
    "Inpainting": "tasks.inpainting",
    "Jigsaw": "tasks.jigsaw",
    "MAE": "tasks.mae",
    "PIRL": "tasks.pirl",
    "PairedDataModule": "data.base",
    "Pairing": "data.base",
    "PretextTask": "tasks.base",
    "Probe": "probes.base",
    "Random": "tasks.random",
    "Rotation": "tasks.rotation",
    "SimCLR": "tasks.simclr",
    "SuperResolution": "tasks.super_resolution",
    "Supervised": "tasks.supervised",
    "VICReg": "tasks.vicreg",
    "BYOL": "tasks.byol",
    "DINO": "tasks.dino",
    "LeJEPA": "tasks.lejepa",
    "as_backbone": "networks.adapter",
    "build_parts": "run.parts",
    "compose": "config.composition",
    "export": "artifacts.export.write",
    "load_backbone": "artifacts.weights",
    "load_classifier": "artifacts.classifiers",
    "probe": "run.probe_call",
}

__all__ = [
    "BYOL",
    "DINO",
    "MAE",
    "PIRL",
    "AdversarialTask",
    "BackboneProbe",
    "BarlowTwins",
    "Colorization",
    "Combined",
    "ContextPrediction",
    "ImageData",
    "ImageSpec",
    "Inpainting",
    "Jigsaw",
    "LeJEPA",
    "PairedDataModule",
    "Pairing",
    "PretextTask",
    "Probe",
    "Random",
    "Rotation",
    "SimCLR",
    "SuperResolution",
    "Supervised",
    "VICReg",
    "as_backbone",
    "build_parts",
    "compose",
    "export",
    "load_backbone",
    "load_classifier",
    "probe",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
