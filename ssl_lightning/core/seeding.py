"""Random streams without hidden state: every draw is a function of seed, epoch, step and rank."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(*names: int | str) -> int:
    """Hash the names of a stream to a 63-bit seed.

    A stream is named by integers or strings, such as (seed, epoch, step, rank). The same names give the same
    numbers on every machine, so a killed and resumed run draws the same numbers as an undisturbed one.

    >>> stream_seed(0, "order", 1) == stream_seed(0, "order", 1)
    True
    >>> stream_seed(0, 1, 2) == stream_seed(0, 2, 1)
    False
    """
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh `torch.Generator` on `device`, seeded by the names of its stream."""
    return torch.Generator(device=device).manual_seed(stream_seed(*names))


class RecordedStream(torch.Generator):
    """Random stream of a CUDA graph. It keeps its twins, since a recording must name every stream.

    Args:
        device: Device of the draws.
    """

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self.twins: dict[tuple[str, int], torch.Generator] = {}

    def manual_seed(self, seed: int) -> RecordedStream:
        """Seed the stream and its twins."""
        for (_, rank), each in self.twins.items():
            each.manual_seed(_twin_seed(seed, rank))
        super().manual_seed(seed)
        return self


def twin(stream: torch.Generator, name: str, rank: int = 0) -> torch.Generator:
    """Return a stream that draws the same numbers as another one from its start.

    Args:
        stream: The other one; its state stays as it is.
        name: Twins of a recorded stream are kept by name and rank.
        rank: Above 0, this process draws numbers of its own, though all processes share the stream.

    >>> one = generator("x")
    >>> torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=twin(one, "y")))
    True
    """
    if not isinstance(stream, RecordedStream):
        return torch.Generator(stream.device).manual_seed(_twin_seed(stream.initial_seed(), rank))
    if (name, rank) not in stream.twins:
        stream.twins[name, rank] = torch.Generator(stream.device)
    return stream.twins[name, rank]


def _twin_seed(seed: int, rank: int) -> int:
    return stream_seed(seed, rank) if rank else seed
