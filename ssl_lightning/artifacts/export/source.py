"""The backbone that an export starts from."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.run_folder import BACKBONE_CONFIG
from ssl_lightning.artifacts.weights import BACKBONES, MAX_CONFIG, check_run, load_backbone
from ssl_lightning.core.untrusted import read_json

TIMM = f"{BACKBONES}timm_backbone.create_timm"
TORCHVISION = f"{BACKBONES}torchvision_backbone.create_torchvision"
IMAGES = 4  # of the parity check


@dataclass(frozen=True)
class ExportSource:
    """An exported backbone of a run.

    Args:
        run: The run folder.
        backbone: In eval mode.
        content: Content of its `backbone.json`.
        transform: Converts pictures to its input.
    """

    run: Path
    backbone: nn.Module
    content: dict[str, Any]
    transform: InputTransform

    @classmethod
    def of_run(cls, run: Path) -> ExportSource:
        """Load the backbone of a run.

        Raises:
            ValueError: The folder is absent or has no readable export, or the export has no description of
                its input.
        """
        check_run(run)
        backbone: Any = load_backbone(run)
        content = read_json(run / BACKBONE_CONFIG, MAX_CONFIG)
        if backbone.transform is None:
            raise ValueError(f"{run / BACKBONE_CONFIG} describes no input; resume={run} writes it again")
        return cls(run, backbone, content, backbone.transform)

    @property
    def target(self) -> str:
        """Dotted name of the class or function that builds the backbone."""
        return str(self.content["backbone"]["_target_"])

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model that are set, without its name, its channels and where weights come from."""
        left_out = ("_target_", "model_name", "in_channels", "pretrained", "out_indices", "stages")
        config = self.content["backbone"]
        return {key: value for key, value in config.items() if key not in left_out and value is not None}

    @property
    def model_name(self) -> str:
        """Name of the model in its library, without a tag of weights."""
        return str(self.content["backbone"]["model_name"]).partition(".")[0]

    @property
    def stages(self) -> list[str]:
        """Names of the nodes that end the stages."""
        info: Any = self.backbone.feature_info
        return list(info.module_name())

    def inputs(self) -> Tensor:
        """Return a fixed random batch as the backbone takes it, `(IMAGES, C, image_size, image_size)`."""
        size, draw = self.transform.image_size, torch.Generator().manual_seed(0)
        shape = (IMAGES, 3 if self.transform.colour == "L" else self.transform.channels, size, size)
        return self.transform(torch.randint(256, shape, generator=draw, dtype=torch.uint8))

    def maps_of(self, network: nn.Module, stages: Sequence[str] | None = None) -> nn.Module:
        """Adapt a network of another library to return the maps of these nodes, or its own maps."""
        adapter = importlib.import_module(f"{BACKBONES}adapter")
        return adapter.as_backbone(
            network, stages=stages, image_size=self.transform.image_size, in_channels=self.transform.channels
        )
