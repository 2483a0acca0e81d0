"""Segmentation head on the stage maps of a backbone (FCN: Long, Shelhamer, Darrell 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_lightning.ops.bilinear import resize_bilinear


class FCNHead(nn.Module):
    """Score every stage map and add the scores up, deepest to shallowest (sec. 4.2: FCN-8s has three).

    Args:
        channels: Channels of each stage map, shallow to deep.
        num_classes: Scores per pixel.
        hidden: Channels of a 3x3 convolution with batch norm and ReLU before the scores of each stage. 0
            omits it; then the scores are linear in the features, as in the paper.
        dilation: Dilation of that convolution.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, *, hidden: int = 0, dilation: int = 1
    ) -> None:
        super().__init__()
        self.scores = nn.ModuleList()
        for width in channels:
            score = nn.Sequential()
            if hidden:
                score.append(nn.Conv2d(width, hidden, 3, padding=dilation, dilation=dilation, bias=False))
                score.extend([nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)])
            last = nn.Conv2d(hidden or width, num_classes, 1)
            nn.init.zeros_(last.weight)  # as in the paper: all classes start equal
            if last.bias is not None:
                nn.init.zeros_(last.bias)
            score.append(last)
            self.scores.append(score)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Map stage maps `(B, C_i, H_i, W_i)`, shallow to deep, to logits `(B, K, *size)`."""
        scored = [score(x) for score, x in zip(self.scores, maps, strict=True)]
        total = scored[-1]
        for shallower in reversed(scored[:-1]):
            total = shallower + resize_bilinear(total, tuple(shallower.shape[2:]))
        return resize_bilinear(total, size)
