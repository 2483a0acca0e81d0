"""Paint scenes: cut-outs on photographs, with exact masks and boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.data.io.annotations import Boxes

CHUNK = 512  # scenes painted at once
LIT = 25  # grey level of 255 above which a pixel belongs to the clothes; fainter ones are scattered noise
HIDDEN = 0.3  # visible share of an object below which it is difficult


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
    """Paint scenes, chunk by chunk.

    Args:
        photographs: `(P, h, w, 3)` uint8, backgrounds, resized to `size`.
        clothes: `(M, h, w)` uint8, black around the object.
        labels: `(M,)` int64, classes of the clothes.
        count: Number of scenes.
        size: Height and width of a scene.
        objects: Fewest and most objects in a scene.
        object_size: Smallest and largest side of an object, as a share of `size`.
        draw: Generator of all random draws.

    Returns:
        Images `(count, size, size, 3)` uint8, masks `(count, size, size)` uint8 (0: background, else 1 +
        class), and the boxes of each scene, from back to front.
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
        # 0: background, else 1 + number of the object
        instance = torch.zeros(number, size, size, dtype=torch.int64)
        present = torch.randint(objects[0], objects[1] + 1, (number,), generator=draw)
        chosen = torch.randint(len(clothes), (number, objects[1]), generator=draw)
        full_area = torch.zeros(number, objects[1])  # pixels of each object, including hidden ones
        for slot in range(objects[1]):  # from back to front
            grey, shape = _placed(clothes[chosen[:, slot]], size, object_size, draw)
            shape &= (slot < present)[:, None, None]
            tint = torch.rand(number, 3, 1, 1, generator=draw) * 0.6 + 0.4
            scene = torch.where(shape[:, None], (0.25 + 0.75 * grey)[:, None] * tint, scene)
            instance.masked_fill_(shape, slot + 1)
            full_area[:, slot] = shape.sum((1, 2))
        classes = torch.cat([torch.zeros(number, 1, dtype=torch.int64), 1 + labels[chosen]], 1)
        images[here] = (scene.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        masks[here] = classes.gather(1, instance.flatten(1)).view_as(instance).byte()
        boxes += _boxes(instance, labels[chosen], full_area)
    return images, masks, boxes


def cut_out(clothes: Tensor) -> Tensor:
    """Return the pixels of clothes `(N, h, w)` uint8 on black as a bool mask, with dark pixels inside."""
    lit = clothes > LIT

    def between(dim: int) -> Tensor:  # lit pixels on both sides
        count = lit.cumsum(dim)
        return (count > 0) & (count < count.select(dim, -1).unsqueeze(dim))

    return lit | (between(1) & between(2))


def _placed(
    clothes: Tensor, size: int, object_size: tuple[float, float], draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Place clothes `(n, h, w)` uint8 at random on empty scenes, mirrored or not.

    Returns:
        Grey levels `(n, size, size)` in [0, 1], and the mask of the object's pixels.
    """
    smallest, largest = object_size
    side, x, y, mirror = torch.rand(4, len(clothes), 1, generator=draw)  # (n, 1) each
    side = smallest + side * (largest - smallest)
    centre_x, centre_y = side / 2 + x * (1 - side), side / 2 + y * (1 - side)
    pixel = (torch.arange(size) + 0.5) / size  # (size,)
    across = (pixel - centre_x) * 2 / side * torch.where(mirror < 0.5, 1.0, -1.0)  # (n, size), -1..1 inside
    down = (pixel - centre_y) * 2 / side
    grid = torch.stack([across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], 3)
    both = torch.stack([clothes.float().div(255), cut_out(clothes).float()], 1)  # (n, 2, h, w)
    grey, cover = F.grid_sample(both, grid, align_corners=False).unbind(1)
    return grey, cover > 0.5


def _boxes(instance: Tensor, labels: Tensor, full_area: Tensor) -> list[Boxes]:
    """Find the box of the visible part of each object.

    Args:
        instance: `(n, size, size)` int64, 1 + number of the object in front, or 0.
        labels: `(n, K)` int64, classes of the objects.
        full_area: `(n, K)` pixels of each object, including hidden ones.
    """
    size = instance.shape[1]
    seen = instance[:, None] == torch.arange(1, labels.shape[1] + 1)[:, None, None]  # (n, K, size, size)
    rows, columns = seen.any(3), seen.any(2)  # (n, K, size)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.int().argmax(2), size - line.flip(2).int().argmax(2)

    (left, right), (top, bottom) = ends(columns), ends(rows)
    corners = torch.stack([left, top, right, bottom], 2).float()  # (n, K, 4)
    area = seen.sum((2, 3))  # (n, K)
    hidden = area < HIDDEN * full_area
    return [
        Boxes(corners[i][there], labels[i][there], hidden[i][there])
        for i, there in enumerate((area > 0).unbind())
    ]
