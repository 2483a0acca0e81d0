"""Shared batches: workers against this process, for any time that batches are held."""

import itertools

import pytest
import torch
from torch import Tensor

from ssl_lightning.data.io.workers import HELD, PREFETCH, BatchWorkers

WORKERS = 2
PLACES = PREFETCH * WORKERS + HELD


class Source:
    """Views (3, 8, 8) whose pixels encode image, seed and position."""

    labels = torch.arange(200)
    channels = 3

    def view_size(self, augment: bool) -> int:
        return 8

    def view(self, index: int, seed: int | None) -> Tensor:
        return (torch.arange(192).view(3, 8, 8) * 7 + 3 * index + (seed or 0)).remainder(256).byte()


def wanted(batches: int, seed: int = 0, size: int = 4) -> list[tuple[list[int], list[int | None]]]:
    return [([size * b + i for i in range(size)], [seed + i for i in range(size)]) for b in range(batches)]


def expected(batches: int, seed: int = 0, size: int = 4) -> list[Tensor]:
    source = Source()
    return [
        torch.stack([source.view(*of) for of in zip(*each, strict=True)])
        for each in wanted(batches, seed, size)
    ]


@pytest.fixture(params=[0, WORKERS])
def made(request: pytest.FixtureRequest) -> BatchWorkers:
    return BatchWorkers(Source(), True, request.param)


@pytest.mark.parametrize("held", [1, HELD, 30])
def test_a_batch_stays_as_it_is_while_it_is_held(made: BatchWorkers, held: int) -> None:
    right = expected(30)
    kept: list[tuple[int, Tensor]] = []
    for number, (images, labels) in enumerate(made.batches(wanted(30))):
        assert labels.tolist() == wanted(30)[number][0]
        assert images.shape == (4, 3, 8, 8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        kept = [*kept, (number, images)][-held:]
        del images
        for at, batch in kept:
            assert torch.equal(batch, right[at])
    assert len(kept) == min(held, 30)


def test_memory_is_used_again_once_nothing_of_a_batch_is_held() -> None:
    made = BatchWorkers(Source(), True, WORKERS)
    places = set()
    for images, _ in made.batches(wanted(40)):
        part = images[0, 0, 0]  # a view keeps the full batch
        places.add(images.data_ptr())
        del images
        assert part.numel()
        del part
    assert len(places) <= PLACES
    assert not made._held


def test_batches_held_over_passes_and_passes_left_early_take_no_place_for_good(made: BatchWorkers) -> None:
    kept = [images for images, _ in itertools.islice(made.batches(wanted(20)), 3)]
    for seed in range(1, 6):
        found = [images.clone() for images, _ in itertools.islice(made.batches(wanted(20, seed)), 4 + seed)]
        assert all(map(torch.equal, found, expected(20, seed)))
    assert all(map(torch.equal, kept, expected(20)))
    del kept
    shared, places = made._shared, set()
    for images, _ in made.batches(wanted(20)):
        places.add((images.data_ptr() - shared.data_ptr()) // (4 * 3 * 8 * 8))
        del images
    assert not made._workers or places <= set(range(PLACES))  # no batch got new memory
    larger = [images.clone() for images, _ in made.batches(wanted(9, 2, size=6))]
    assert all(map(torch.equal, larger, expected(9, 2, size=6)))
    assert not made._held
