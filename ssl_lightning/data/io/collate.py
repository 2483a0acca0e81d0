"""Collate pictures of PIL into batches of uint8 images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from ssl_lightning.data.io.pixels import image_pixels, with_channels


def collate_images(samples: Sequence[Any]) -> Any:
    """Collate samples with pictures of PIL: the `collate_fn` of a DataLoader over such a data set.

    Args:
        samples: Pictures, tuples that start with a picture, or dicts with a picture under "image". All
            pictures have the same size.

    Returns:
        Images `(B, C, H, W)` uint8, alone, first in a list, or in a dict, as in the samples. C is 1 if all
        pictures are grey, else 3. Pixels are converted as of image files, for example from 16 bits. The other
        entries are collated as torch does.

    Raises:
        ValueError: The sizes differ, or a sample has no picture.

    Example:
        >>> images, labels = collate_images([(Image.new("RGB", (8, 8)), 3), (Image.new("L", (8, 8)), 5)])
        >>> images.shape, images.dtype, labels.tolist()
        (torch.Size([2, 3, 8, 8]), torch.uint8, [3, 5])
    """
    first = samples[0]
    if isinstance(first, Mapping):
        rest = default_collate([{k: v for k, v in sample.items() if k != "image"} for sample in samples])
        return {"image": _stack([sample.get("image") for sample in samples]), **rest}
    if isinstance(first, Sequence):
        images = _stack([sample[0] for sample in samples])
        return [images, *default_collate([tuple(sample[1:]) for sample in samples])]
    return _stack(samples)


def _stack(pictures: Sequence[Any]) -> Tensor:
    if wrong := [each for each in pictures if not isinstance(each, Image.Image)]:
        raise ValueError(
            f"collate_images found a {type(wrong[0]).__name__} in place of a picture; a sample is a picture "
            "of PIL, a tuple that starts with one, or a dict with 'image'"
        )
    pixels = [image_pixels(each, "a picture") for each in pictures]  # (H, W, C) uint8
    sizes = sorted({(each.shape[1], each.shape[0]) for each in pixels})
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sizes[:2]
        raise ValueError(
            f"collate_images found pictures of {width} x {height} and {other_width} x {other_height} px; add "
            "Resize((size, size)) or RandomResizedCrop(size) of torchvision to the transform of the data set"
        )
    channels = max(each.shape[2] for each in pixels)
    same = [with_channels(each[None], channels) for each in pixels]
    return torch.cat(same).permute(0, 3, 1, 2)
