"""Export of the backbone of a run, with a check of the outputs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssl_lightning.artifacts.export import hf_format, onnx_format, timm_format, torchvision_format
from ssl_lightning.artifacts.export.source import ExportSource
from ssl_lightning.core.atomic_files import naming_full_disk, write_json

PREPROCESSING = "preprocessing.json"
TOLERANCE = 1e-4  # of differences, times the largest output if that is above 1

Outputs = Callable[[Tensor], Sequence[Tensor]]  # input of the backbone -> outputs, of the last stages
FORMATS: dict[str, Callable[[ExportSource, Path], Outputs]] = {
    "timm": timm_format.write,
    "torchvision": torchvision_format.write,
    "onnx": onnx_format.write,
    "hf": hf_format.write,
}


@dataclass(frozen=True)
class Exported:
    """A folder that `export` wrote.

    Attributes:
        folder: The folder.
        format: Its format.
        difference: Largest difference from the outputs of our backbone, on random images.
        largest: Largest output of our backbone on them.
    """

    folder: Path
    format: str
    difference: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.format}: {self.folder} (largest difference {self.difference:.1e}, outputs up to "
            f"{self.largest:.1f})"
        )


def export(run: str | Path, format: str, folder: str | Path | None = None) -> Exported:
    """Write the backbone of a run in the format of another library.

    The folder appears only if its model, read back from the folder, has the outputs of our backbone. It holds
    `preprocessing.json` too: image size, colours, crop, mean and deviation of the input.

    Args:
        run: A finished run folder.
        format: "timm" (`timm.create_model("local-dir:...")`), "torchvision" (a state dict), "onnx", or "hf"
            (a folder for the Hugging Face Hub, read by `load_backbone`).
        folder: Folder to write; None for `export/<format>` in the run folder. It replaces an earlier export.

    Returns:
        The folder and the largest difference of the outputs.

    Raises:
        ValueError: The format cannot hold this backbone, a package is missing, the folder holds anything but
            an export, or the outputs differ.

    Example:
        ::

            print(export("outputs/rotation/cifar10/resnet18/first", "timm"))
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed are {', '.join(FORMATS)}")
    run = Path(run).expanduser()
    source = ExportSource.of_run(run)
    place = run / "export" / format if folder is None else Path(folder).expanduser()
    if place.exists() and not (place / PREPROCESSING).is_file():
        raise ValueError(f"{place} exists and is no export; give another folder=")
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming_full_disk(place.parent, "Make room, or give another folder="),
        _new_folder(place) as temporary,
    ):
        write_json(temporary / PREPROCESSING, {**source.transform.config, "interpolation": "bicubic"})
        difference, largest = _compare(source, FORMATS[format](source, temporary))
        if not difference <= TOLERANCE * max(1.0, largest):  # NaN fails this too
            raise ValueError(
                f"the exported model differs from the backbone by {difference:.1e}, of outputs up to "
                f"{largest:.1f}; allowed is {TOLERANCE:g} of them. Nothing was written; format=hf works"
            )
    return Exported(place, format, difference, largest)


def _compare(source: ExportSource, exported: Outputs) -> tuple[float, float]:
    """Return the largest difference between exported and own stage maps, and the largest own value."""
    inputs = source.inputs()
    with torch.no_grad():
        theirs, ours = exported(inputs), source.backbone(inputs)
    pairs = list(zip(reversed(theirs), reversed(ours), strict=False))  # a format may lack the first stages
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    return difference, max(float(b.abs().max()) for _, b in pairs)


@contextlib.contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `place` on success, and is removed otherwise."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if place.exists():
            shutil.rmtree(place)
        temporary.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
