"""Convolution of maps smaller than the kernel, as one matrix product."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedConv2d(nn.Conv2d):
    """A convolution without bias, padded so that size H becomes ceil(H / stride), fast on tiny maps too.

    On a map of 2 x 2 cells, a 3x3 kernel reads mostly padding, and CPU kernels work along rows of only two
    cells. A linear layer from every cell to every cell needs 4 x 4 products instead of 4 x 9, in one large
    matrix product. It is used on a CPU if map and result have at most half as many cells as the kernel.
    In bfloat16, where processors have matrix units, the map may have four times as many (4 x 4 with stride
    2). The map must be channels-last, so that it is not copied. Jigsaw and context prediction use it for the
    last three convolutions of `convnet`. Results differ by rounding; weights are as in `torch.nn.Conv2d`.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels of the result.
        kernel: Height and width of the kernel, odd.
        stride: Stride in both directions.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve maps `(B, C, H, W)` to `(B, C', ceil(H / stride), ceil(W / stride))`."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        batch, channels, height, width = input.shape
        rows, columns = (-(-cells // stride) for cells in (height, width))
        most = 2 * kernel**2 if input.dtype == torch.bfloat16 else kernel**2 / 2
        small = height * width <= most and rows * columns <= kernel**2 / 2
        last = input.is_contiguous(memory_format=torch.channels_last)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not (small and last and input.is_cpu) or traced:
            return super().forward(input)
        joins = _joins(height, width, kernel, stride).to(self.weight.dtype)
        taps = self.weight.permute(2, 3, 0, 1).reshape(kernel**2, -1)  # (k * k, C' * C)
        dense = (joins @ taps).view(rows * columns, height * width, self.out_channels, channels)
        dense = dense.transpose(1, 2).reshape(rows * columns * self.out_channels, -1)
        cells = F.linear(input.permute(0, 2, 3, 1).reshape(batch, -1), dense)
        return cells.view(batch, rows, columns, self.out_channels).permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)  # validation may fill the cache that training then uses
def _joins(height: int, width: int, kernel: int, stride: int) -> Tensor:
    """Mark the kernel tap that joins a cell of the map to a cell of the result: 0/1, `(to * from, k * k)`."""

    def along(cells: int) -> Tensor:  # (to, from, k)
        centre, offset = torch.arange(0, cells, stride), torch.arange(kernel) - kernel // 2
        return (centre[:, None, None] + offset == torch.arange(cells)[:, None]).float()

    joins = along(height)[:, None, :, None, :, None] * along(width)[None, :, None, :, None, :]
    return joins.reshape(-1, kernel**2)
