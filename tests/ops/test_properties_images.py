"""Properties of image ops for all sizes, types and layouts: rotations, holes, colours, resampling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ssl_lightning.ops.ab_bins import (
    annealed_mean,
    candidate_table,
    gamut_bins,
    rebalancing_weights,
    smooth_prior,
    soft_encode,
)
from ssl_lightning.ops.ab_prior import cached_statistics, measure, pixels, shrink
from ssl_lightning.ops.adversarial import discriminator_scores, generator_loss
from ssl_lightning.ops.bilinear import resize_bilinear
from ssl_lightning.ops.corruptions import CORRUPTIONS, corrupt
from ssl_lightning.ops.image_quality import masked_mse, psnr
from ssl_lightning.ops.lab import lab_to_rgb, rgb_to_lab
from ssl_lightning.ops.masks import block_masks, border_weights, centre_mask, fill, region_masks
from ssl_lightning.ops.resample import resize_bicubic
from ssl_lightning.ops.rotation import rotate_four, rotate_one
from tests.ops._drawn import ALL, FLOATS, SEEDS, close, drawn, generator, pictures, tensors, unchanged, values


def turned(image: Tensor, turns: int) -> Tensor:
    """Rotate an image `(C, H, H)` counter-clockwise, pixel by pixel."""
    side, out = image.shape[-1], image.clone()
    for y, x in itertools.product(range(side), repeat=2):
        at = {0: (y, x), 1: (x, side - 1 - y), 2: (side - 1 - y, side - 1 - x), 3: (side - 1 - x, y)}[turns]
        out[:, y, x] = image[:, at[0], at[1]]
    return out


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=ALL, square=True, size=(1, 7), batch=(0, 3)))
def test_rotate_four(images: Tensor) -> None:
    with unchanged(images):
        copies, classes = rotate_four(images)
    batch = len(images)
    assert (copies.dtype, classes.dtype) == (images.dtype, torch.int64)
    assert copies.shape == (4 * batch, *images.shape[1:])
    for number, (copy, turns) in enumerate(zip(copies, classes.tolist(), strict=True)):
        assert turns == number // batch
        assert torch.equal(copy, turned(images[number % batch], turns))
        assert torch.equal(torch.rot90(copy, -turns, (1, 2)), images[number % batch])  # the inverse
    if images.is_contiguous(memory_format=torch.channels_last):
        assert copies.is_contiguous(memory_format=torch.channels_last)
    else:
        assert copies.is_contiguous()


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=ALL, square=True, size=(1, 7)), SEEDS)
def test_rotate_one(images: Tensor, seed: int) -> None:
    with unchanged(images):
        rotated, classes = rotate_one(images, generator(seed))
    assert (rotated.dtype, rotated.shape) == (images.dtype, images.shape)
    assert classes.shape == images.shape[:1]
    for image, copy, turns in zip(images, rotated, classes.tolist(), strict=True):
        assert torch.equal(copy, turned(image, turns))


@pytest.mark.slow
@drawn(30)
@given(pictures(size=(1, 6)))
def test_images_that_are_not_square_are_not_rotated(images: Tensor) -> None:
    assume(images.shape[2] != images.shape[3])
    for rotate in (rotate_four, lambda x: rotate_one(x, generator(0))):
        with pytest.raises(ValueError, match="square"):
            rotate(images)


SIZE_AND_HOLE = st.integers(1, 20).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


@pytest.mark.slow
@drawn()
@given(SIZE_AND_HOLE, st.integers(0, 4))
def test_centre_mask(sizes: tuple[int, int], batch: int) -> None:
    size, hole = sizes
    mask = centre_mask(batch, size, hole)
    assert (mask.shape, mask.dtype) == ((batch, 1, size, size), torch.bool)
    assert mask.flatten(1).sum(1).tolist() == [hole * hole] * batch
    for one in mask:
        before = int(one.any(2).int().argmax())
        assert before == (size - hole) // 2
        assert torch.equal(one, one.mT)


@pytest.mark.slow
@drawn()
@given(SIZE_AND_HOLE, st.integers(0, 4), SEEDS)
def test_block_masks(sizes: tuple[int, int], batch: int, seed: int) -> None:
    size, hole = sizes
    if hole < 2:
        with pytest.raises(ValueError, match="hole is 1 px; allowed are 2 to"):
            block_masks(batch, size, hole, generator(seed))
        return
    mask = block_masks(batch, size, hole, generator(seed))
    assert (mask.shape, mask.dtype) == ((batch, 1, size, size), torch.bool)
    side = hole // 2
    for one in mask.flatten(1).sum(1).tolist():
        assert side * side <= one <= 4 * side * side <= hole * hole
    # every pixel of the mask lies in a complete square of the mask
    inside = F.unfold(mask.float(), side).prod(1).view(batch, 1, size - side + 1, size - side + 1)
    grown = F.conv_transpose2d(inside, torch.ones(1, 1, side, side)) > 0
    assert torch.equal(grown, mask)


@pytest.mark.slow
@drawn()
@given(SIZE_AND_HOLE, st.integers(0, 4), SEEDS)
def test_region_masks(sizes: tuple[int, int], batch: int, seed: int) -> None:
    size, hole = sizes
    mask = region_masks(batch, size, hole, generator(seed))
    assert (mask.shape, mask.dtype) == ((batch, 1, size, size), torch.bool)
    assert mask.flatten(1).sum(1).tolist() == [hole * hole] * batch
    assert torch.equal(mask, region_masks(batch, size, hole, generator(seed)))


@drawn(30)
@given(st.integers(1, 12), st.integers(-3, 30))
def test_holes_that_do_not_fit_are_refused(size: int, hole: int) -> None:
    assume(not 1 <= hole <= size)
    for make in (
        lambda: centre_mask(1, size, hole),
        lambda: block_masks(1, size, hole, generator(0)),
        lambda: region_masks(1, size, hole, generator(0)),
    ):
        with pytest.raises(ValueError, match=f"hole is {hole} px; allowed are"):
            make()


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=ALL, square=True), SEEDS)
def test_fill(images: Tensor, seed: int) -> None:
    mask = values((len(images), 1, *images.shape[2:]), seed) < 0.5
    colour = values((1, images.shape[1], 1, 1), seed + 1, images.dtype)
    with unchanged(images, mask):
        filled = fill(images, mask, colour)
    assert filled.dtype == images.dtype
    assert torch.equal(filled, torch.where(mask.expand_as(images), colour.expand_as(images), images))
    assert torch.equal(fill(filled, mask, colour), filled)


@pytest.mark.slow
@drawn()
@given(st.integers(0, 3), st.integers(1, 12), st.integers(0, 14), st.floats(0, 20), SEEDS)
def test_border_weights(batch: int, size: int, overlap: int, weight: float, seed: int) -> None:
    mask = values((batch, 1, size, size), seed) < 0.1
    found = border_weights(mask, overlap, weight)
    expected = torch.zeros(batch, 1, size, size)
    for image, y, x in itertools.product(range(batch), range(size), range(size)):
        near = mask[image, 0, max(0, y - overlap) : y + overlap + 1, max(0, x - overlap) : x + overlap + 1]
        expected[image, 0, y, x] = 1 if mask[image, 0, y, x] else weight * bool(near.any())
    close(found, expected, scale=20)
    assert found.dtype == torch.float32


@pytest.mark.slow
@drawn()
@given(pictures(batch=(0, 3)), SEEDS)
def test_masked_mse_and_psnr(images: Tensor, seed: int) -> None:
    others = values(tuple(images.shape), seed, images.dtype)
    mask = values((len(images), 1, *images.shape[2:]), seed + 1) < 0.6
    mask[..., 0, 0] = True
    with unchanged(images, others, mask):
        error = masked_mse(images, others, mask)
    for one, a, b, m in zip(error, images.double(), others.double(), mask, strict=True):
        expected = ((a - b) ** 2)[m.expand_as(a)].mean()
        close(one, expected, images.dtype)
        close(masked_mse(a[None], b[None], m[None])[0], expected)
    decibels = psnr(error)
    assert decibels.dtype == error.dtype
    for one, said in zip(error.tolist(), decibels.tolist(), strict=True):
        assert said == pytest.approx(min(100, -10 * math.log10(max(one, 1e-10))), rel=0.01, abs=0.1)


# --- colours ---

RGB = pictures(channels=(3, 3), size=(1, 6), dtypes=(torch.float32, torch.float64, torch.bfloat16))


@pytest.mark.slow
@drawn()
@given(RGB)
def test_lab_there_and_back(images: Tensor) -> None:
    with unchanged(images):
        lab = rgb_to_lab(images)
    assert lab.dtype == (torch.float64 if images.dtype == torch.float64 else torch.float32)
    assert lab.shape == images.shape
    if images.numel():
        assert lab[:, 0].min() >= -1e-3
        assert lab[:, 0].max() <= 100.001
        assert lab[:, 1].min() >= -87
        assert lab[:, 1].max() <= 99
        assert lab[:, 2].min() >= -108.5
        assert lab[:, 2].max() <= 95
    with unchanged(lab):
        back = lab_to_rgb(lab)
    assert back.dtype == lab.dtype
    torch.testing.assert_close(back, images.to(back.dtype), atol=2e-4, rtol=0)
    grey = rgb_to_lab(images[:, :1].expand_as(images))
    assert not grey.numel() or grey[:, 1:].abs().max() < 0.02


@pytest.mark.slow
@drawn(30)
@given(RGB, SEEDS)
def test_lab_treats_pixels_apart_and_always_clips(images: Tensor, seed: int) -> None:
    lab = rgb_to_lab(images)
    order = torch.randperm(len(images), generator=generator(seed))
    torch.testing.assert_close(rgb_to_lab(images[order]), lab[order], atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(rgb_to_lab(images.mT), lab.mT, atol=2e-4, rtol=1e-5)
    wild = lab_to_rgb(500 * (values(tuple(images.shape), seed) - 0.5))
    assert not wild.numel() or (wild.min() >= 0 and wild.max() <= 1)


BINS = {grid: gamut_bins(grid) for grid in (7, 10, 23, 60)}
TABLES: dict[tuple[int, int], Tensor] = {}


def table_of(grid: int, neighbours: int) -> Tensor:
    key = grid, neighbours
    if key not in TABLES:
        TABLES[key] = candidate_table(BINS[grid], grid, neighbours)
    return TABLES[key]


@pytest.mark.slow
@drawn(12)
@given(st.integers(5, 60), SEEDS)
def test_gamut_bins(grid: int, seed: int) -> None:
    bins = gamut_bins(grid)
    assert (bins.dtype, bins.shape[1]) == (torch.float32, 2)
    assert torch.equal(bins, bins.unique(dim=0))
    assert not (bins % grid).any()
    rgb = torch.randint(256, (3, 1, 500), generator=generator(seed)).double() / 255
    lower = (rgb_to_lab(rgb)[1:, 0] / grid).floor().T  # (500, 2)
    known = {tuple(row) for row in (bins / grid).long().tolist()}
    for (a, b), (da, db) in itertools.product(lower.long().tolist(), ((0, 0), (0, 1), (1, 0), (1, 1))):
        assert (a + da, b + db) in known


@pytest.mark.parametrize("grid", [-1, 0, 4, 61])
def test_impossible_grids_are_refused(grid: int) -> None:
    with pytest.raises(ValueError, match=f"grid is {grid}"):
        gamut_bins(grid)


@pytest.mark.parametrize("neighbours", [0, 1000])
def test_impossible_neighbours_are_refused(neighbours: int) -> None:
    with pytest.raises(ValueError, match=f"neighbours is {neighbours}; allowed are 1 to"):
        candidate_table(BINS[23], 23, neighbours)


@pytest.mark.slow
@drawn()
@given(st.sampled_from(sorted(BINS)), st.integers(1, 7), st.integers(0, 40), st.floats(0.5, 30), SEEDS)
def test_soft_encode_against_all_bins(
    grid: int, neighbours: int, count: int, sigma: float, seed: int
) -> None:
    bins = BINS[grid]
    neighbours = min(neighbours, len(bins))
    table = table_of(grid, neighbours)
    ab = rgb_to_lab(values((3, 1, count), seed))[1:, 0].T  # not contiguous
    with unchanged(ab, bins, table):
        near, share = soft_encode(ab, bins, table, neighbours=neighbours, sigma=sigma)
    assert (near.dtype, near.shape, share.shape) == (torch.int64, (count, neighbours), (count, neighbours))
    squared = (ab[:, None] - bins).square().sum(2)  # (N, Q)
    best = squared.sort(1).values[:, :neighbours]
    close(squared.gather(1, near), best, scale=100)
    assert not count or share.min() >= 0
    close(share, torch.softmax(-best.double() / (2 * sigma**2), 1))
    assert all(len(set(row)) == neighbours for row in near.tolist())


@pytest.mark.slow
@drawn()
@given(st.sampled_from(sorted(BINS)), st.integers(1, 50), st.floats(0.5, 20), st.floats(0.01, 1), SEEDS)
def test_prior_and_weights(grid: int, seen: int, sigma: float, strength: float, seed: int) -> None:
    bins = BINS[grid]
    counts = torch.zeros(len(bins), dtype=torch.int64)
    counts[torch.randint(len(bins), (seen,), generator=generator(seed))] += 3
    with unchanged(counts):
        prior = smooth_prior(counts, bins, sigma)
    assert prior.dtype == torch.float64
    assert prior.min() >= 0
    assert float(prior.sum()) == pytest.approx(1, abs=1e-9)
    weights = rebalancing_weights(prior, strength)
    assert float((weights * prior).sum()) == pytest.approx(1, abs=1e-9)
    assert weights.float().isfinite().all()  # as stored by the task
    ranked = prior.argsort()
    assert (weights[ranked].diff() <= 1e-9 * weights.max()).all()  # rarer bins weigh at least as much
    assert torch.allclose(rebalancing_weights(prior, 1.0), torch.ones_like(prior))


@pytest.mark.parametrize("strength", [-0.1, 0.0, 1.1])
def test_impossible_strengths_are_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength is .*; allowed are above 0, to 1"):
        rebalancing_weights(torch.tensor([1.0, 0.0]), strength)


@pytest.mark.slow
@drawn()
@given(st.integers(0, 9), st.sampled_from(sorted(BINS)), st.floats(0.05, 2), st.sampled_from(FLOATS), SEEDS)
def test_annealed_mean(count: int, grid: int, temperature: float, dtype: Any, seed: int) -> None:
    bins = BINS[grid]
    logits = (8 * values((count, len(bins)), seed) - 4).to(dtype)
    with unchanged(logits):
        ab = annealed_mean(logits, bins, temperature)
    assert (ab.dtype, ab.shape) == (torch.float32, (count, 2))
    share = (logits.double() / temperature).softmax(1)
    close(ab, share @ bins.double(), scale=100)
    assert (ab >= bins.amin(0) - 1e-3).all()
    assert (ab <= bins.amax(0) + 1e-3).all()
    order = torch.randperm(len(bins), generator=generator(seed))
    close(annealed_mean(logits[:, order], bins[order], temperature), ab, scale=100)


@pytest.mark.slow
@drawn()
@given(pictures(channels=(1, 3), size=(1, 9)), st.integers(1, 11))
def test_shrink_and_pixels(maps: Tensor, reduction: int) -> None:
    with unchanged(maps):
        small = shrink(maps, reduction)
    height, width = (-(-size // reduction) for size in maps.shape[2:])
    assert (small.dtype, small.shape) == (maps.dtype, (*maps.shape[:2], height, width))
    for y, x in itertools.product(range(height), range(width)):
        rows, columns = (
            slice(at * size // cells, -(-(at + 1) * size // cells))
            for at, size, cells in ((y, maps.shape[2], height), (x, maps.shape[3], width))
        )
        close(small[..., y, x], maps[..., rows, columns].double().mean((2, 3)), maps.dtype)
    listed = pixels(maps)
    assert listed.shape == (maps.shape[0] * maps.shape[2] * maps.shape[3], maps.shape[1])
    expected = [maps[b, :, y, x] for b, y, x in itertools.product(*map(range, (len(maps), *maps.shape[2:])))]
    assert torch.equal(listed, torch.stack(expected) if expected else listed[:0])


@pytest.mark.slow
@drawn(25)
@given(
    pictures(dtypes=(torch.uint8,), channels=(3, 3), size=(1, 6), batch=(1, 5)),
    st.integers(1, 7),
    st.integers(1, 90),
)
def test_measure_whatever_the_chunks(images: Tensor, reduction: int, chunk: int) -> None:
    import ssl_lightning.ops.ab_prior as module

    bins, table = BINS[23], table_of(23, 1)
    with unchanged(images):
        found = measure(images, bins, table, reduction)
    before, module.CHUNK = module.CHUNK, chunk
    try:
        parts = measure(images, bins, table, reduction)
    finally:
        module.CHUNK = before
    assert torch.equal(found.counts, parts.counts)
    close(parts.mean, found.mean, torch.float32, 100)
    ab = pixels(shrink(rgb_to_lab(images / 255)[:, 1:], reduction)).double().numpy()
    assert found.counts.sum() == len(ab)
    np.testing.assert_allclose(found.mean, ab.mean(0), atol=1e-3)
    assert found.std == pytest.approx(np.sqrt(ab.var(0).mean()), abs=2e-3)


@pytest.mark.slow
@drawn(8)
@given(pictures(dtypes=(torch.uint8,), channels=(3, 3), size=(2, 5), batch=(2, 5)))
def test_cached_statistics_are_those_measured(tmp_path_factory: Any, images: Tensor) -> None:
    folder = tmp_path_factory.mktemp("cache")
    arguments = lambda n: images[:n], len(images), BINS[23], table_of(23, 1), 2
    found = [cached_statistics(*arguments, place) for place in (None, folder, folder)]
    for other in found[1:]:
        assert torch.equal(other.counts, found[0].counts)
        assert torch.equal(other.mean, found[0].mean)
        assert other.std == found[0].std
    (kept,) = (folder / "ab_priors").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])  # torn
    assert torch.equal(cached_statistics(*arguments, folder).counts, found[0].counts)


# --- resampling ---


@pytest.mark.slow
@drawn()
@given(pictures(), st.integers(1, 15), st.integers(1, 15))
def test_resize_bilinear(maps: Tensor, height: int, width: int) -> None:
    with unchanged(maps):
        found = resize_bilinear(maps, (height, width))
    assert (found.dtype, found.shape) == (maps.dtype, (*maps.shape[:2], height, width))
    if maps.shape[2:] == (height, width):
        assert found is maps
    if len(maps):
        expected = F.interpolate(maps.double(), (height, width), mode="bilinear", align_corners=False)
        close(found, expected, maps.dtype)
    flat = resize_bilinear(torch.full_like(maps, 0.75), (height, width))
    close(flat, torch.full_like(flat, 0.75), maps.dtype)


def test_what_cannot_be_interpolated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"maps are torch.uint8; bilinear weights need floats"):
        resize_bilinear(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (8, 8))
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"size is .*{size}.*; allowed is 1 or more"):
            resize_bilinear(torch.zeros(1, 1, 4, 4), (size, 8))
        with pytest.raises(ValueError, match=f"size is {size}; allowed is 1 or more"):
            resize_bicubic(torch.zeros(1, 1, 4, 4), size)


def cubic(t: float) -> float:
    """Evaluate Keys' kernel, a = -0.5."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def bicubic_matrix(inputs: int, outputs: int) -> np.ndarray:
    """Compute the weight of each input in each output; when shrinking, the kernel spans output pixels."""
    scale = inputs / outputs
    wide = max(scale, 1.0)
    matrix = np.zeros((outputs, inputs))
    for out in range(outputs):
        centre = (out + 0.5) * scale
        low, high = max(0, int(centre - 2 * wide + 0.5)), min(inputs, int(centre + 2 * wide + 0.5))
        for at in range(low, high):
            matrix[out, at] = cubic((at - centre + 0.5) / wide)
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.slow
@drawn()
@given(pictures(square=True, size=(1, 12)), st.integers(1, 14))
def test_resize_bicubic(images: Tensor, size: int) -> None:
    with unchanged(images):
        found = resize_bicubic(images, size)
    assert (found.dtype, found.shape) == (torch.float32, (*images.shape[:2], size, size))
    matrix = torch.from_numpy(bicubic_matrix(images.shape[2], size))
    close(found, matrix @ images.double() @ matrix.T)


# --- two networks against each other ---

LOGITS = tensors(st.lists(st.integers(1, 4), min_size=1, max_size=3))


@pytest.mark.slow
@drawn()
@given(LOGITS, LOGITS, st.floats(0, 0.49))
def test_adversarial_losses(real: Tensor, fake: Tensor, smoothing: float) -> None:
    real, fake = 12 * real - 6, 12 * fake - 6
    with unchanged(real, fake):
        made = generator_loss(fake)
        scores = discriminator_scores(real, fake, smoothing)
    assert made.dtype == torch.float32
    sigmoid = lambda x: 1 / (1 + np.exp(-x.double().numpy()))  # noqa: E731
    assert float(made) == pytest.approx(-np.log(sigmoid(fake)).mean(), rel=1e-3)
    true, false = sigmoid(real), sigmoid(fake)
    on_real = -((1 - smoothing) * np.log(true) + smoothing * np.log(1 - true)).mean()
    assert float(scores["disc_loss"]) == pytest.approx((on_real - np.log(1 - false).mean()) / 2, rel=1e-3)
    undecided = (1 - smoothing) / 2
    clear = (abs(true - undecided) > 1e-4).all() and (abs(false - undecided) > 1e-4).all()
    if clear:
        assert float(scores["disc_acc_real"]) == pytest.approx((true > undecided).mean())
        assert float(scores["disc_acc_fake"]) == pytest.approx((false < undecided).mean())


@pytest.mark.slow
@drawn()
@given(st.sampled_from(list(CORRUPTIONS)), pictures(dtypes=(torch.uint8,), size=(2, 9)))
def test_corruptions_take_every_layout_and_treat_images_apart(name: str, images: Tensor) -> None:
    with unchanged(images):
        found = corrupt(images, name)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    assert torch.equal(found, corrupt(images.contiguous(), name))
    for each, expected in zip(images, found, strict=True):
        assert torch.equal(corrupt(each[None], name)[0], expected)
