"""A new pretext task in one file: was the image mirrored from left to right?

python examples/new_task.py photos
"""

import sys

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssl_lightning import ImageData
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.tasks.base import PretextTask


class Mirror(PretextTask):
    """Predict whether an image was mirrored; half of the images of a batch are."""

    def __init__(self, backbone: nn.Module, spec: ImageSpec | None = None, **base: object) -> None:
        super().__init__(backbone, **base)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.head = PooledClassifier(self.backbone, 2)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        mirrored = torch.randint(2, (len(images),), generator=stream, device=images.device)
        x = torch.where(mirrored.view(-1, 1, 1, 1) == 1, images.flip(-1), images)
        logits = self.head(self.backbone(self.normalise(x)))  # (B, 2)
        accuracy = (logits.argmax(1) == mirrored).float().mean()
        return {"loss": F.cross_entropy(logits, mirrored), "acc": accuracy}


def main(photos: str, image_size: int = 96, batch_size: int = 64, max_epochs: int = 10) -> None:
    # flips would hide the answer
    data = ImageData(photos, image_size=image_size, batch_size=batch_size, flip=False)
    pl.Trainer(max_epochs=max_epochs).fit(Mirror(torchvision.models.resnet18()), data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
