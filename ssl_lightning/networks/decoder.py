"""Decoder of all generative tasks: maps the stage maps of a backbone to a picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.networks.features import conv_bn_relu

Size = tuple[int, int]


class Decoder(nn.Module):
    """Double the deepest stage map until it has the size of the result, then apply one convolution.

    A step enlarges by nearest neighbour and convolves (3x3, batch norm, ReLU): transposed convolutions leave
    checkerboards (Odena, Dumoulin, Olah 2016). Without skips, all information passes through the deepest
    stage, so that the backbone cannot take a shallow shortcut.

    Args:
        backbone: The backbone; only its `feature_info` is read.
        out_channels: Channels of the result.
        reduction: Image size over the size of the result, 1 for full resolution; at most the backbone's.
        width: Channels of the last step; each step before it has twice as many, up to `max_width`.
        max_width: Upper bound for the channels of a step.
        skips: Whether the convolution of a step also takes the deepest stage map of the same size.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backbone: Any,
        out_channels: int,
        *,
        reduction: int = 1,
        width: int = 32,
        max_width: int = 256,
        skips: bool = False,
    ) -> None:
        super().__init__()
        channels, reductions = backbone.feature_info.channels(), backbone.feature_info.reduction()
        if min(out_channels, width, max_width) < 1:
            raise ValueError(
                f"a decoder with out_channels {out_channels}, width {width} and max_width {max_width}; "
                "all must be at least 1"
            )
        if not 1 <= reduction <= reductions[-1]:
            raise ValueError(
                f"a decoder with reduction {reduction}; allowed are 1 to {reductions[-1]}, the reduction of "
                "the backbone's deepest stage"
            )
        self.reduction = reduction
        self.steps = nn.ModuleList()
        self.levels: list[int] = []  # reduction after each step
        self.skip_stages: list[int | None] = []  # stage that each step takes as a skip
        level, inputs = reductions[-1], channels[-1]
        while level > reduction:
            level = max(reduction, level // 2)
            skipped = next((s for s in reversed(range(len(reductions))) if reductions[s] == level), None)
            self.skip_stages.append(skipped if skips else None)
            self.levels.append(level)
        for number, stage in enumerate(self.skip_stages):
            outputs = min(max_width, width * 2 ** (len(self.levels) - 1 - number))
            inputs += 0 if stage is None else channels[stage]
            self.steps.append(conv_bn_relu(inputs, outputs, 3))
            inputs = outputs
        self.last = nn.Conv2d(inputs, out_channels, 3, padding=1)

    def forward(self, stages: list[Tensor], size: Size) -> Tensor:
        """Decode stage maps `(B, C_i, H_i, W_i)` of images of `size` (H, W).

        Returns:
            `(B, out_channels, ceil(H / reduction), ceil(W / reduction))`.
        """
        x = stages[-1]
        for step, level, skip_stage in zip(self.steps, self.levels, self.skip_stages, strict=True):
            x = F.interpolate(x, (-(-size[0] // level), -(-size[1] // level)), mode="nearest")
            if skip_stage is not None:
                skipped = stages[skip_stage]
                if skipped.shape[2:] != x.shape[2:]:  # unpadded backbones, such as AlexNet
                    skipped = F.interpolate(skipped, x.shape[2:], mode="nearest")
                x = torch.cat([x, skipped], 1)
            x = step(x)
        wanted = (-(-size[0] // self.reduction), -(-size[1] // self.reduction))
        if x.shape[2:] != wanted:
            x = F.interpolate(x, wanted, mode="nearest")
        return self.last(x)
