"""Solve jigsaw puzzles with your own network and your own loader.

python examples/own_backbone.py
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from ssl_lightning import Jigsaw, as_backbone


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    return nn.Sequential(block(3, 32), block(32, 64), nn.Flatten(), nn.LazyLinear(10))


def main(max_epochs: int = 5) -> None:
    images = torch.rand(512, 3, 48, 48)  # your images: uint8, or floats in [0, 1]
    train = DataLoader(images[:448], batch_size=32, shuffle=True, drop_last=True)
    val = DataLoader(images[448:], batch_size=32)
    task = Jigsaw(as_backbone(network(), stages=["0", "1"], image_size=48))
    stops = [ModelCheckpoint(monitor="val/loss"), EarlyStopping("val/loss")]
    trainer = pl.Trainer(max_epochs=max_epochs, callbacks=stops)
    trainer.fit(task, train, val)
    print(trainer.callback_metrics["val/acc"])


if __name__ == "__main__":
    main()
