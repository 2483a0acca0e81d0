"""Colour statistics of a data set against scikit-image and numpy, and their cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from ssl_lightning.ops.ab_bins import candidate_table, gamut_bins
from ssl_lightning.ops.ab_prior import cached_statistics, measure, pixels, shrink

BINS = gamut_bins(10)
TABLE = candidate_table(BINS, 10, 5)


def images(seed: int = 0, count: int = 40) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, 8, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.mark.parametrize("reduction", [1, 4])
def test_counts_mean_and_deviation_are_those_of_numpy(reduction: int) -> None:
    given = images()
    ab = rgb2lab(given.permute(0, 2, 3, 1).numpy() / 255)[..., 1:]  # (n, H, W, 2)
    n, height, width, _ = ab.shape
    cells = ab.reshape(n, height // reduction, reduction, width // reduction, reduction, 2).mean((2, 4))
    rows = cells.reshape(-1, 2)
    nearest = ((rows[:, None] - BINS.numpy()) ** 2).sum(2).argmin(1)
    found = measure(given, BINS, TABLE, reduction)
    expected = np.bincount(nearest, minlength=313)
    assert np.abs(found.counts.numpy() - expected).sum() <= 2  # a colour half-way between two bins
    assert found.counts.sum() == len(rows)
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), atol=1e-3)
    assert found.std == pytest.approx(np.sqrt(rows.var(0).mean()), abs=1e-3)


def test_shrinking_averages_cells_also_at_odd_sizes() -> None:
    ab = torch.rand(2, 2, 8, 12)
    torch.testing.assert_close(shrink(ab, 4)[:, :, 1, 2], ab[:, :, 4:, 8:].mean((2, 3)))
    assert shrink(torch.rand(2, 2, 9, 13), 4).shape == (2, 2, 3, 4)


def test_pixels_lists_row_by_row() -> None:
    maps = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    rows = pixels(maps)
    assert rows.shape == (8, 3)
    assert torch.equal(rows[5], maps[1, :, 0, 1])


class Sample:
    """Return the first images of a fixed order, and store the requested counts."""

    def __init__(self, seed: int = 0) -> None:
        self.images, self.asked = images(seed), []

    def __call__(self, count: int) -> torch.Tensor:
        self.asked.append(count)
        return self.images[:count]


def test_what_was_measured_is_kept_and_read_back_exactly(tmp_path: Path) -> None:
    first, again = Sample(), Sample()
    measured = cached_statistics(first, 40, BINS, TABLE, 2, tmp_path)
    read = cached_statistics(again, 40, BINS, TABLE, 2, tmp_path)
    assert first.asked == [32, 40]
    assert again.asked == [32]
    assert torch.equal(read.counts, measured.counts)
    assert torch.equal(read.mean, measured.mean)
    assert read.std == measured.std
    direct = measure(Sample().images, BINS, TABLE, 2)
    assert torch.equal(direct.counts, read.counts)
    assert not list((tmp_path / "ab_priors").glob(".*"))


def test_other_data_other_numbers_and_torn_files_are_measured_anew(tmp_path: Path) -> None:
    cached_statistics(Sample(), 40, BINS, TABLE, 2, tmp_path)
    for sample, count, reduction in ((Sample(1), 40, 2), (Sample(), 39, 2), (Sample(), 40, 1)):
        cached_statistics(sample, count, BINS, TABLE, reduction, tmp_path)
        assert sample.asked == [32, count]
    other = gamut_bins(20)
    sample = Sample()
    cached_statistics(sample, 40, other, candidate_table(other, 20, 5), 2, tmp_path)
    assert sample.asked == [32, 40]
    for path in (tmp_path / "ab_priors").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    sample = Sample()
    cached_statistics(sample, 40, BINS, TABLE, 2, tmp_path)
    assert sample.asked == [32, 40]


def test_without_a_cache_nothing_is_written_and_a_broken_one_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file"):
        sample = Sample()
        assert cached_statistics(sample, 8, BINS, TABLE, 1, folder).counts.sum() == 8 * 96
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
