"""Pretrain a timm resnet18 by rotation on a folder of images, then probe it on labelled folders.

python examples/folder.py photos labelled/train labelled/test
"""

import sys

import pytorch_lightning as pl
import timm

from ssl_lightning import ImageData, Rotation, probe


def main(
    photos: str, train: str, test: str, image_size: int = 96, batch_size: int = 64, max_epochs: int = 10
) -> None:
    data = ImageData(photos, train, test, image_size=image_size, batch_size=batch_size)
    task = Rotation(timm.create_model("resnet18"))
    before = probe(task, train, test, image_size=image_size)
    pl.Trainer(max_epochs=max_epochs).fit(task, data)
    after = probe(task, train, test)
    print(after.against(before))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
