"""Generated scenes with exact masks and boxes: clothes of Fashion-MNIST on photographs of CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.data._dense import DenseDataModule
from ssl_lightning.data.base import Pairing
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.cifar10 import obtain_cifar10
from ssl_lightning.data.io.dense import Boxes, DenseArrays
from ssl_lightning.data.io.download import cache_root
from ssl_lightning.data.io.fashion_mnist import CLASSES, obtain_fashion_mnist
from ssl_lightning.data.io.sources import ArraySource
from ssl_lightning.seeding import generator

KINDS = ("masks", "boxes")
CHUNK = 512  # scenes painted at once
HIDDEN = 0.3  # objects of which less is to be seen are difficult


class Scenes(DenseDataModule):
    """Tinted clothes, upright and at times in front of each other, on photographs; downloads nothing else.

    Training scenes are made of training images of both sets, test scenes of test images. A mask has
    background as class 0; a box holds what is to be seen of an object, and is difficult where that is less
    than 30 %.

    Args:
        root: Cache folder of both sets; None for the default one (see `io.download`).
        targets: "masks" or "boxes": what the probes see.
        num_train: Training scenes; they serve the pretext and the probes.
        num_test: Test scenes.
        objects: Fewest and most objects in a scene; 0 makes scenes without boxes too.
        object_size: Smallest and largest side of an object, as a share of the scene's.
        scenes_seed: Other scenes for every value, the same ones for every seed of a run.
        crop_padding: Pixels by which training images are padded, by reflection, before the random crop.
        flip: Whether half of the training images of the pretext are mirrored left to right.
        batch_size, eval_batch_size, image_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`.

    Raises:
        ValueError: A value is out of range.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        root: str | None = None,
        targets: str = "masks",
        num_train: int = 5000,
        num_test: int = 1000,
        objects: Sequence[int] = (1, 3),
        object_size: Sequence[float] = (0.3, 0.6),
        scenes_seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 250,
        image_size: int = 64,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        heldout: int | None = 500,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            channels=3,
            seed=seed,
            mean=mean,
            std=std,
            heldout=heldout,
            max_labels=max_labels,
            pretrain_size=pretrain_size,
        )
        if targets not in KINDS:
            raise ValueError(f"data.targets is {targets!r}; allowed are {', '.join(KINDS)}")
        if min(num_train, num_test) < 1:
            raise ValueError(
                f"data.num_train is {num_train} and data.num_test {num_test}; both must be at least 1"
            )
        if len(objects) != 2 or not 0 <= objects[0] <= objects[1] or not 1 <= objects[1] <= 20:
            raise ValueError(f"data.objects is {list(objects)}; allowed is 0 <= fewest <= most, most 1 to 20")
        if len(object_size) != 2 or not 0 < object_size[0] <= object_size[1] <= 1:
            raise ValueError(
                f"data.object_size is {list(object_size)}; allowed is 0 < smallest <= largest <= 1"
            )
        self.root = cache_root(root)
        self.targets = targets
        self.num_train, self.num_test = num_train, num_test
        self.objects = (int(objects[0]), int(objects[1]))
        self.object_size = (float(object_size[0]), float(object_size[1]))
        self.scenes_seed = scenes_seed
        self.augment = CropFlip(crop_padding, flip)

    def fetch(self) -> None:
        obtain_cifar10(self.root)
        obtain_fashion_mnist(self.root)

    def load(self) -> Pairing:
        """Paint the scenes, in memory."""
        folders = obtain_cifar10(self.root), obtain_fashion_mnist(self.root)
        images, train = self._paint(folders, "train", self.num_train)
        test_images, test = self._paint(folders, "test", self.num_test)
        names = ("background", *CLASSES) if self.targets == "masks" else CLASSES
        return Pairing(
            ArraySource(images, None, self.augment),
            DenseArrays(images, train),
            DenseArrays(test_images, test),
            names,
            overlap=torch.arange(len(images)),
        )

    def _paint(
        self, folders: tuple[Path, Path], split: str, count: int
    ) -> tuple[Tensor, Tensor | list[Boxes]]:
        photographs, clothes = (load(folder, f"{split}_images") for folder in folders)
        images, masks, boxes = paint_scenes(
            photographs,
            clothes[..., 0],
            load(folders[1], f"{split}_labels"),
            count,
            size=self.image_size,
            objects=self.objects,
            object_size=self.object_size,
            draw=generator("scenes", split, self.scenes_seed),
        )
        return images, masks if self.targets == "masks" else boxes


def paint_scenes(
    photographs: Tensor,
    clothes: Tensor,
    labels: Tensor,
    count: int,
    *,
    size: int,
    objects: tuple[int, int],
    object_size: tuple[float, float],
    draw: torch.Generator,
) -> tuple[Tensor, Tensor, list[Boxes]]:
    """Paint scenes, batch by batch.

    Args:
        photographs: `(P, h, w, 3)` uint8, resized to be backgrounds.
        clothes: `(M, h, w)` uint8, black around the object.
        labels: `(M,)` int64, their classes.
        count: Scenes.
        size: Height and width of a scene.
        objects: Fewest and most objects in a scene.
        object_size: Smallest and largest side of an object, as a share of `size`.
        draw: Draws everything random.

    Returns:
        Images `(count, size, size, 3)` uint8, masks `(count, size, size)` uint8 (0: background, else 1 +
        class), and the boxes of each scene, the object at the back first.
    """
    images = torch.empty(count, size, size, 3, dtype=torch.uint8)
    masks = torch.empty(count, size, size, dtype=torch.uint8)
    boxes: list[Boxes] = []
    for first in range(0, count, CHUNK):
        number = min(CHUNK, count - first)
        here = slice(first, first + number)
        place = torch.randint(len(photographs), (number,), generator=draw)
        scene = photographs[place].permute(0, 3, 1, 2).float().div_(255)  # (n, 3, h, w)
        scene = F.interpolate(scene, (size, size), mode="bilinear", align_corners=False)
        instance = torch.zeros(
            number, size, size, dtype=torch.int64
        )  # 0: background, else 1 + place of the object
        present = torch.randint(objects[0], objects[1] + 1, (number,), generator=draw)
        chosen = torch.randint(len(clothes), (number, objects[1]), generator=draw)
        whole = torch.zeros(number, objects[1])  # pixels of each object, hidden ones too
        for slot in range(objects[1]):  # from back to front
            grey, shape = _placed(clothes[chosen[:, slot]].float().div_(255), size, object_size, draw)
            shape &= (slot < present)[:, None, None]
            tint = torch.rand(number, 3, 1, 1, generator=draw) * 0.6 + 0.4
            scene = torch.where(shape[:, None], (0.25 + 0.75 * grey)[:, None] * tint, scene)
            instance.masked_fill_(shape, slot + 1)
            whole[:, slot] = shape.sum((1, 2))
        classes = torch.cat([torch.zeros(number, 1, dtype=torch.int64), 1 + labels[chosen]], 1)
        images[here] = (scene.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        masks[here] = classes.gather(1, instance.flatten(1)).view_as(instance).byte()
        boxes += _boxes(instance, labels[chosen], whole)
    return images, masks, boxes


def cut_out(clothes: Tensor) -> Tensor:
    """Say which pixels of clothes `(N, h, w)`, black around them, belong to them: dark ones within do too."""
    lit = clothes > 0

    def between(dim: int) -> Tensor:  # lit pixels on both sides
        count = lit.cumsum(dim)
        return (count > 0) & (count < count.select(dim, -1).unsqueeze(dim))

    return lit | (between(1) & between(2))


def _placed(
    clothes: Tensor, size: int, object_size: tuple[float, float], draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put each of the clothes `(n, h, w)` somewhere on an empty scene, mirrored or not.

    Returns:
        Grey levels `(n, size, size)`, and which pixels are the object's.
    """
    smallest, largest = object_size
    side, x, y, mirror = torch.rand(4, len(clothes), 1, generator=draw)  # (n, 1) each
    side = smallest + side * (largest - smallest)
    centre_x, centre_y = side / 2 + x * (1 - side), side / 2 + y * (1 - side)
    pixel = (torch.arange(size) + 0.5) / size  # (size,)
    across = (pixel - centre_x) * 2 / side * torch.where(mirror < 0.5, 1.0, -1.0)  # (n, size), -1..1 within
    down = (pixel - centre_y) * 2 / side
    grid = torch.stack([across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], 3)
    both = torch.stack([clothes, cut_out(clothes).float()], 1)  # (n, 2, h, w)
    grey, cover = F.grid_sample(both, grid, align_corners=False).unbind(1)
    return grey, cover > 0.5


def _boxes(instance: Tensor, labels: Tensor, whole: Tensor) -> list[Boxes]:
    """Find the boxes of what is to be seen of each object.

    Args:
        instance: `(n, size, size)` int64, 1 + place of the object that is in front, or 0.
        labels: `(n, K)` int64, classes of the objects.
        whole: `(n, K)` pixels of each object, hidden ones too.
    """
    size = instance.shape[1]
    seen = instance[:, None] == torch.arange(1, labels.shape[1] + 1)[:, None, None]  # (n, K, size, size)
    rows, columns = seen.any(3), seen.any(2)  # (n, K, size)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.int().argmax(2), size - line.flip(2).int().argmax(2)

    (left, right), (top, bottom) = ends(columns), ends(rows)
    corners = torch.stack([left, top, right, bottom], 2).float()  # (n, K, 4)
    area = seen.sum((2, 3))  # (n, K)
    hidden = area < HIDDEN * whole
    return [
        Boxes(corners[i][there], labels[i][there], hidden[i][there])
        for i, there in enumerate((area > 0).unbind())
    ]
