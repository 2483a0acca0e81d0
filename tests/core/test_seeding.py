"""Random streams as pure functions of their names."""

import itertools

import torch

from ssl_lightning.core.seeding import RecordedStream, generator, stream_seed, twin


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream_seed(0, "train", 1, 2, 3) == 4320726443674556818


def test_names_are_hashed_separately() -> None:
    names = [*itertools.product(range(12), repeat=3), (1, 11), (11, 1), (111,), ("1", 11)]
    seeds = {stream_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_starts_fresh_each_time() -> None:
    first, second = (torch.rand(4, generator=generator(3, "x")) for _ in range(2))
    assert torch.equal(first, second)


def test_twins_draw_alike_and_independently() -> None:
    stream = generator(3, "x")
    expected = torch.rand(4, generator=generator(3, "x"))
    torch.rand(2, generator=stream)
    for name in "ab":
        assert torch.equal(torch.rand(4, generator=twin(stream, name)), expected)
    recorded = RecordedStream("cpu")
    one, other = twin(recorded, "a"), twin(recorded, "b")
    assert twin(recorded, "a") is one
    recorded.manual_seed(generator(3, "x").initial_seed())
    for each in (one, other, recorded):
        assert torch.equal(torch.rand(4, generator=each), expected)


def test_processes_have_twins_of_their_own_of_a_shared_stream() -> None:
    recorded = RecordedStream("cpu")
    kept = [twin(recorded, "a", rank) for rank in range(3)]
    for seed in (1, 2):
        stream = torch.Generator().manual_seed(seed)
        fresh = [torch.rand(4, generator=twin(stream, "a", rank)) for rank in range(3)]
        assert torch.equal(fresh[0], torch.rand(4, generator=stream))
        assert len({tuple(draws.tolist()) for draws in fresh}) == 3
        recorded.manual_seed(seed)
        for each, draws in zip(kept, fresh, strict=True):
            assert torch.equal(torch.rand(4, generator=each), draws)
