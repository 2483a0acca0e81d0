"""ONNX graph of the stage maps and the pooled features of a backbone."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.export.source import ExportSource

MODEL = "model.onnx"


class _Outputs(nn.Module):
    """Return the stage maps, and the mean of the deepest one over its cells."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(images)
        return (*maps, maps[-1].mean((2, 3)))


def write(source: ExportSource, folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """Write `model.onnx`; return the stage maps of onnxruntime.

    The graph maps `images` `(B, C, image_size, image_size)`, any B, to `stage1`, `stage2`, ... and `features`
    `(B, D)`.

    Args:
        source: Any backbone.
        folder: An empty folder.

    Raises:
        ValueError: A package is missing, or the backbone has operations without an ONNX form.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"format=onnx needs onnx, onnxscript and onnxruntime ({error}); "
            "pip install 'ssl-lightning[export]'"
        ) from error
    images = source.inputs()[:2]
    stages = [f"stage{number}" for number in range(1, len(source.stages) + 1)]
    path = folder / MODEL
    try:
        with _quiet():
            torch.onnx.export(
                _Outputs(source.backbone).eval(),
                (images,),
                str(path),
                input_names=["images"],
                output_names=[*stages, "features"],
                dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the backbone has no ONNX form ({reason}); format=hf works") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(stages, {"images": inputs.numpy()})]

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress and warnings, which concern its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
