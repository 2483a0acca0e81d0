"""Fixed positions of the tokens of a transformer (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

PERIOD = 10_000.0  # the slowest wave is so many times as long as the fastest


def positions(rows: int, columns: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return waves that tell the places of a grid apart, `(rows, columns, width)`.

    The first half of the numbers depends on the row and the second on the column; each has sines, then
    cosines, of frequencies that fall geometrically from 1.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        width: Numbers of a place, a multiple of 4.
        device: Device of the result.
    """
    frequency = PERIOD ** -(torch.arange(width // 4, device=device) / (width // 4))

    def along(count: int) -> Tensor:  # (count, width / 2)
        angle = torch.arange(count, device=device)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], 1)

    row, column = along(rows)[:, None], along(columns)[None]
    return torch.cat([row.expand(-1, columns, -1), column.expand(rows, -1, -1)], 2)
