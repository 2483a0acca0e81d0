"""Decoder of a masked autoencoder (MAE: He et al. 2022)."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_lightning.ops.positions import positions


class MAEDecoder(nn.Module):
    """Fill in a learned token where tokens are hidden, and predict the pixels of every patch.

    Args:
        inputs: Size of a token of the encoder.
        outputs: Numbers of a patch.
        width: Size of a token of the decoder, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads of a block.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, outputs)

    def forward(self, visible: Tensor, restore: Tensor) -> Tensor:
        """Predict all patches of square images from their visible tokens.

        Args:
            visible: `(B, M, inputs)`.
            restore: `(B, T)`, see `Masking`.

        Returns:
            `(B, T, outputs)`.
        """
        batch, tokens = restore.shape
        x = self.embed(visible)
        hidden = self.mask_token.to(x.dtype).expand(batch, tokens - x.shape[1], -1)
        x = torch.cat([x, hidden], 1).take_along_dim(restore[..., None], 1)  # (B, T, width)
        side = round(tokens**0.5)
        x = x + positions(side, side, x.shape[2], x.device).flatten(0, 1)
        return self.predict(self.norm(self.blocks(x)))
