"""Up-sampling head of SRResNet (Ledig et al. 2017, fig. 4; Shi et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PixelShuffleHead(nn.Module):
    """Double the deepest stage map by pixel shuffle up to `scale` times its size, then a 9x9 convolution.

    Args:
        backbone: A backbone whose maps are as large as its input; only its `feature_info` is read.
        out_channels: Channels of the result.
        scale: Size of the result over the size of the map, a power of 2.

    Raises:
        ValueError: The backbone shrinks its input.
    """

    def __init__(self, backbone: Any, out_channels: int, scale: int) -> None:
        super().__init__()
        width, reduction = backbone.feature_info.channels()[-1], backbone.feature_info.reduction()[-1]
        if reduction != 1:
            raise ValueError(
                f"the deepest stage of the backbone is 1/{reduction} of its input; small images need a "
                "backbone that keeps their size, such as backbone=srresnet; or choose task.input=enlarged"
            )
        steps: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            steps += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.steps = nn.Sequential(*steps)
        self.last = nn.Conv2d(width, out_channels, 9, padding=4)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, h, w)`, to `(B, out_channels, scale * h, scale * w)`."""
        return self.last(self.steps(stages[-1]))
