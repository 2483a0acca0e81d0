"""SimCLR in the manner of lightly's example: views made one image at a time, and a plain Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import VisionDataset

from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.ops.views import Strengths

LR = 0.06  # of lightly's example, which has neither momentum nor a schedule


class LightlySimCLR(pl.LightningModule):
    """SimCLR of lightly's head and loss.

    Args:
        backbone: Its last stage map is averaged and embedded.
        hidden: Units of the hidden layer of the projection head.
        embedding: Size of an embedding.
        temperature: Divides the similarities.
    """

    def __init__(self, backbone: nn.Module, hidden: int, embedding: int, temperature: float) -> None:
        super().__init__()
        info: Any = backbone.feature_info
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(info.channels()[-1], hidden, embedding)
        self.criterion = NTXentLoss(temperature)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images `(B, C, H, W)`: `(B, D)`."""
        pooled: Tensor = self.backbone(images)[-1].mean((2, 3))
        embedded: Tensor = self.projection_head(pooled)
        return embedded

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (first, second), _, _ = batch
        loss: Tensor = self.criterion(self(first), self(second))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)


class PilImages(VisionDataset):
    """Images in memory that are read as pictures, like torchvision's CIFAR10.

    Args:
        pixels: `(N, H, W, 3)` uint8.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(root="")
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture: Any = Image.fromarray(self.pixels[index])
        return (picture if self.transform is None else self.transform(picture)), -1


def lightly_loader(data: PairedDataModule, strengths: Strengths, workers: int) -> DataLoader[Any]:
    """Return lightly's loader over the pretraining images of a data module.

    The views have the given strengths, so that both sides make the same changes.

    Args:
        data: Set up; colour images.
        strengths: Strengths of the views.
        workers: Processes that make views.

    Raises:
        ValueError: lightly's transform cannot make such views.
    """
    smallest, largest = strengths.crop_scale
    if data.spec.channels != 3 or largest != 1 or strengths.solarise:
        raise ValueError(
            f"lightly's SimCLRTransform makes views of colour images, with crops of up to the full image and "
            f"not solarised; channels are {data.spec.channels}, task.crop_scale is [{smallest}, {largest}] "
            f"and task.solarise {strengths.solarise}"
        )
    transform = SimCLRTransform(
        input_size=data.spec.image_size,
        cj_prob=strengths.jitter,
        cj_bright=strengths.brightness,
        cj_contrast=strengths.contrast,
        cj_sat=strengths.saturation,
        cj_hue=strengths.hue,
        min_scale=smallest,
        random_gray_scale=strengths.grey,
        gaussian_blur=strengths.blur,
        hf_prob=strengths.flip,
        normalize={"mean": list(data.spec.mean), "std": list(data.spec.std)},
    )
    images = torch.cat([images.cpu() for images, _ in data.unlabelled()])
    pictures = PilImages(images.permute(0, 2, 3, 1).contiguous().numpy())
    return DataLoader(
        LightlyDataset.from_torch_dataset(pictures, transform=transform),
        batch_size=data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=MultiViewCollate(),
    )


def lightly_trainer(
    accelerator: str, folder: str, callbacks: Sequence[pl.Callback], **length: Any
) -> pl.Trainer:
    """Return a Trainer with Lightning's defaults; only the place of its files and its length are given."""
    return pl.Trainer(
        accelerator=accelerator, devices=1, default_root_dir=folder, callbacks=list(callbacks), **length
    )
