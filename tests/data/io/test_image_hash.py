"""Near-duplicates: hashes and their search against naive loops, and images that are and are not alike."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.image_hash import (
    correlations,
    difference_hashes,
    grey_grids,
    nearest_hashes,
    telling,
)
from tests.data._landscapes import landscapes


def test_a_grid_is_the_mean_of_pixels_under_triangles() -> None:
    images = torch.randint(256, (3, 3, 16, 18), dtype=torch.uint8, generator=generator("grid"))

    def weights(pixels: int, cells: int) -> np.ndarray:
        scale = pixels / cells
        found = np.zeros((cells, pixels))
        for cell in range(cells):
            for pixel in range(pixels):
                found[cell, pixel] = max(0.0, 1 - abs((pixel + 0.5) - scale * (cell + 0.5)) / scale)
        return found / found.sum(1, keepdims=True)

    grey = images.double().mean(1).numpy()
    wanted = weights(16, 8) @ grey @ weights(18, 9).T
    np.testing.assert_allclose(grey_grids(images).numpy(), wanted, atol=1e-3)  # float32 of 0 to 255


def test_a_hash_has_a_bit_for_each_rise() -> None:
    grids = torch.randint(256, (20, 8, 9), generator=generator("hash")).float()
    for grid, found in zip(grids.tolist(), difference_hashes(grids), strict=True):
        bits = [row[column + 1] > row[column] for row in grid for column in range(8)]
        assert int(found) == sum(bit << place for place, bit in enumerate(bits))


@pytest.mark.parametrize("bound", [0, 1, 4, 9])
@pytest.mark.parametrize("pairs", [1 << 22, 3])
def test_the_nearest_hash_is_that_of_a_naive_loop(
    bound: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_lightning.data.io.image_hash.PAIRS", pairs)
    draw = np.random.default_rng(bound)
    base = draw.integers(0, 2**64, 40, np.uint64)
    base[7] = base[3]  # the first of equal ones counts
    queries = [*draw.integers(0, 2**64, 10, np.uint64)]
    for flips in range(12):
        for hashed in base[:5]:
            bits = draw.choice(64, flips, replace=False)
            queries.append(hashed ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=0))
    index, bits = nearest_hashes(np.array(queries, np.uint64), base, bound)
    for query, found, distance in zip(queries, index, bits, strict=True):
        all_bits = [(int(query) ^ int(other)).bit_count() for other in base]
        near = min(all_bits) <= bound
        assert found == (all_bits.index(min(all_bits)) if near else -1)
        assert distance == (min(all_bits) if near else 64)


def test_no_hashes_have_no_neighbours() -> None:
    none, one = np.zeros(0, np.uint64), np.ones(1, np.uint64)
    assert [each.tolist() for each in nearest_hashes(one, none, 4)] == [[-1], [64]]
    assert [each.tolist() for each in nearest_hashes(none, one, 4)] == [[], []]


def test_equal_hashes_are_compared_once() -> None:
    many = np.full(200_000, 12345, np.uint64)  # all pairs would take hours
    index, bits = nearest_hashes(many, many, 4)
    assert (index == 0).all()
    assert (bits == 0).all()


def recompressed(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def scaled(image: Tensor, size: int) -> Tensor:
    whole = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1)


CHANGES = {
    "compression": recompressed,
    "brightness": lambda x: (x.float() * 0.7).byte(),
    "contrast": lambda x: ((x.float() - 128) * 0.6 + 140).byte(),
    "smaller": lambda x: scaled(x, 40),
    "larger": lambda x: scaled(x, 200),
    "crop of 1 px each side": lambda x: x[:, 1:-1, 1:-1],
    "grey": lambda x: x.float().mean(0, keepdim=True).byte().expand(3, -1, -1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near(change: str) -> None:
    images = landscapes(200)
    grids = grey_grids(images)
    changed = torch.cat([grey_grids(CHANGES[change](image)[None]) for image in images])
    index, _ = nearest_hashes(difference_hashes(changed), difference_hashes(grids), 4)
    share = 0.65 if "crop" in change else 0.95  # a shift turns more bits than 4 in some images
    assert (index == np.arange(200)).mean() > share
    assert (correlations(changed, grids) > 0.95).float().mean() > 0.95


def test_a_mirror_image_has_the_hash_of_the_turned_grid() -> None:
    grids = grey_grids(landscapes(50))
    mirrored = difference_hashes(grey_grids(landscapes(50).flip(3)))
    bits = np.bitwise_count(difference_hashes(grids.flip(2)) ^ mirrored)
    assert bits.max() <= 1  # the order of float32 sums may decide a tie


def test_different_images_are_not_near() -> None:
    one, other = (difference_hashes(grey_grids(landscapes(2000, 32, seed))) for seed in ("a", "b"))
    index, _ = nearest_hashes(one, other, 4)
    assert (index >= 0).mean() <= 0.002


def test_plain_images_tell_nothing() -> None:
    flat = torch.full((1, 3, 32, 32), 99, dtype=torch.uint8)
    noise = torch.randint(98, 101, (1, 3, 32, 32), dtype=torch.uint8, generator=generator("noise"))
    rows = torch.arange(0, 256, 8, dtype=torch.uint8)[:, None].expand(1, 3, 32, 32)  # no change along rows
    grids = torch.cat([grey_grids(each) for each in (flat, noise, rows)])
    assert telling(grids).tolist() == [False, False, False]
    assert telling(grey_grids(landscapes(300))).mean() > 0.99


def test_correlations_are_numpys() -> None:
    one, other = (torch.rand(5, 8, 9, generator=generator(seed)) for seed in "ab")
    wanted = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(correlations(one, other), wanted, atol=1e-5)
    np.testing.assert_allclose(correlations(one, 3 * one + 9), 1, atol=1e-5)
    assert correlations(torch.ones(1, 8, 9), one[:1]).item() == 0
