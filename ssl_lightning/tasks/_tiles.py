"""Tiles of an image through a backbone: each alone, or together as tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.networks.vit import SmallViT

ON = ("tiles", "tokens")


def check_on(on: str, backbone: nn.Module, kind: str) -> None:
    """Raise on a wrong `task.on`, or on a backbone that does not support it.

    Args:
        on: "tiles" or "tokens".
        backbone: The backbone.
        kind: What the backbone is, in words.

    Raises:
        ValueError: Another value, or tokens of a backbone without them.
    """
    if on not in ON:
        raise ValueError(f"task.on is {on!r}; allowed are {' and '.join(ON)}")
    if on == "tokens" and not isinstance(backbone, SmallViT):
        raise ValueError(
            f"task.on is tokens, which only SmallViT supports, and the backbone is {kind}; use "
            "backbone=vit_tiny_small_images or task.on=tiles"
        )


def encode_tiles(backbone: Any, tiles: Tensor, on: str, memory_format: torch.memory_format) -> list[Tensor]:
    """Encode tiles `(B, n, C, t, t)`: stage maps, the last `(B * n, D, h, w)`.

    Args:
        backbone: The backbone.
        tiles: Its input.
        on: "tiles" encodes each tile alone, "tokens" the n tiles of an image together.
        memory_format: Memory format of the input.
    """
    x = tiles.flatten(0, 1).contiguous(memory_format=memory_format)  # (B * n, C, t, t)
    return backbone(x, together=tiles.shape[1]) if on == "tokens" else backbone(x)
