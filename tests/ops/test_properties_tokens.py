"""Properties of tokens for all sizes, types and layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_lightning.ops.positions import positions
from ssl_lightning.ops.tokens import draw_masking, from_patches, to_patches
from tests.ops._drawn import ALL, LAYOUTS, SEEDS, drawn, generator, laid_out, unchanged, values


@pytest.mark.slow
@drawn()
@given(
    st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4),
    st.sampled_from(ALL), st.sampled_from(LAYOUTS), SEEDS,
)  # fmt: skip
def test_patches(
    batch: int, channels: int, side: int, size: int, dtype: torch.dtype, layout: str, seed: int
) -> None:
    images = laid_out(values((batch, channels, side * size, side * size), seed, dtype), layout)
    with unchanged(images):
        patches = to_patches(images, size)
        assert torch.equal(from_patches(patches, channels, size), images)
    assert patches.dtype == dtype
    assert patches.shape == (batch, side**2, channels * size**2)
    for token in range(side**2):
        top, left = token // side * size, token % side * size
        expected = images[:, :, top : top + size, left : left + size].flatten(1)
        assert torch.equal(patches[:, token], expected)


@pytest.mark.slow
@drawn()
@given(st.integers(0, 4), st.integers(1, 20), st.data(), SEEDS)
def test_masking(batch: int, tokens: int, data: st.DataObject, seed: int) -> None:
    visible = data.draw(st.integers(1, tokens))
    keep, restore, hidden = draw_masking(batch, tokens, visible, generator(seed))
    assert keep.shape == (batch, visible)
    assert torch.equal(hidden.sum(1), torch.full((batch,), tokens - visible))
    assert not hidden.gather(1, keep).any()
    assert torch.equal(restore.sort(1).values, torch.arange(tokens).expand(batch, -1))
    assert torch.equal(restore.gather(1, keep), torch.arange(visible).expand(batch, -1))


@pytest.mark.slow
@drawn()
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_positions(rows: int, columns: int, quarter: int) -> None:
    table = positions(rows, columns, 4 * quarter)
    assert table.shape == (rows, columns, 4 * quarter)
    # a place does not depend on the size of the grid, and the axes swap with the halves
    assert torch.equal(positions(rows + 2, columns + 1, 4 * quarter)[:rows, :columns], table)
    swapped = positions(columns, rows, 4 * quarter).transpose(0, 1).roll(2 * quarter, 2)
    assert torch.equal(swapped, table)
    sines, cosines = table.unflatten(2, (2, 2, quarter)).unbind(3)
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones_like(sines))
    # no two places are alike
    assert len(table.flatten(0, 1).unique(dim=0)) == rows * columns
