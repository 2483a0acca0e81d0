"""Near-duplicates between the images of a data set: pretraining or training images that show a test image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_lightning.core.messages import tell
from ssl_lightning.core.progress import tracked
from ssl_lightning.data.io.image_hash import (
    correlations,
    difference_hashes,
    grey_grids,
    nearest_hashes,
    telling,
)
from ssl_lightning.data.io.loader import BatchLoader

ACTIONS = ("ignore", "report", "drop")
BOUND = 4  # most bits of 64 that differ
ALIKE = 0.95  # smallest correlation of two grids
# Splits that learn, each with the splits that must be new to it
CHECKED = {"pretrain": ("test", "heldout"), "train": ("test",)}
WORDS = {"pretrain": "pretraining", "train": "training", "heldout": "held-out", "test": "test"}


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show the same.

    Args:
        split: Split of the first one, "pretrain" or "train".
        place: Its position in the split.
        name: Its path, or split and number.
        of: Split of the other one, "test" or "heldout".
        twin: Path of the other one, or split and number.
        bits: Bits of 64 in which their hashes differ.
        mirrored: Whether one is mirrored left to right.
    """

    split: str
    place: int
    name: str
    of: str
    twin: str
    bits: int
    mirrored: bool

    def __str__(self) -> str:
        mirrored = ", mirrored" if self.mirrored else ""
        return f"{self.split}\t{self.name}\t{self.of}\t{self.twin}\t{self.bits} of 64 bits differ{mirrored}"


def check_action(action: str) -> str:
    """Return the value of `near_duplicates`.

    Raises:
        ValueError: It is unknown.
    """
    if action not in ACTIONS:
        raise ValueError(f"data.near_duplicates is {action!r}; allowed are {', '.join(ACTIONS)}")
    return action


def find_near_duplicates(loaders: Mapping[str, BatchLoader]) -> list[NearDuplicate]:
    """Compare the splits that learn with the splits that must be new to them.

    Hashes find candidates, and the correlation of their grey grids confirms them. Images without structure,
    such as plain colours, are not compared. Each image is listed once with each other split, beside
    the image with the nearest hash.

    Args:
        loaders: Not augmented and not shuffled, for each split that exists.
    """
    grids = {split: _grids_of(split, loader) for split, loader in loaders.items()}
    found = []
    for split, others in CHECKED.items():
        for other in others:
            if split not in grids or other not in grids:
                continue
            places, twins, bits, mirrored = match_grids(grids[split], grids[other])
            names = loaders[split].names(loaders[split].indices[places])
            shown = loaders[other].names(loaders[other].indices[twins])
            columns = (places.tolist(), names, shown, bits.tolist(), mirrored.tolist())
            found += [
                NearDuplicate(split, place, name, other, twin, far, flipped)
                for place, name, twin, far, flipped in zip(*columns, strict=True)
            ]
    return found


def match_grids(grids: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the near-duplicates of images among others, by their grids `(N, 8, 9)` and `(M, 8, 9)`.

    Returns:
        For each match, `(K,)`: the index of the image, sorted, the index of the other one, the bits in which
        their hashes differ, and whether one is mirrored.
    """
    mine, theirs = (torch.from_numpy(np.flatnonzero(telling(each))) for each in (grids, others))
    base = difference_hashes(others[theirs])
    best = torch.full((len(mine), 3), -1)  # index of the other one, bits, mirrored
    for mirrored in (1, 0):  # the plain match wins
        turned = grids[mine].flip(2) if mirrored else grids[mine]
        index, bits = map(torch.from_numpy, nearest_hashes(difference_hashes(turned), base, BOUND))
        near = index >= 0
        near[near.clone()] = correlations(turned[near], others[theirs[index[near]]]) >= ALIKE
        best[near] = torch.stack([theirs[index[near]], bits[near], torch.full_like(bits[near], mirrored)], 1)
    matched = best[:, 0] >= 0
    twins, bits, mirrored_too = best[matched].unbind(1)
    return mine[matched], twins, bits, mirrored_too.bool()


def tell_near_duplicates(found: list[NearDuplicate], dropped: bool) -> None:
    """Say in one line how many images of each split have a near-duplicate."""
    pairs = [(split, other) for split, others in CHECKED.items() for other in others]
    counts = {pair: sum((each.split, each.of) == pair for each in found) for pair in pairs}
    shown = ", ".join(
        f"{count:,} {WORDS[split]} image{'s' * (count != 1)} of {WORDS[of]} images"
        for (split, of), count in counts.items()
        if count
    )
    if not shown:
        tell("near-duplicates: none found between pretraining, training, held-out and test images")
        return
    leaks = dropped or any(each.split == "pretrain" for each in found)
    advice = "; data.near_duplicates=drop leaves them out of pretraining"
    done = "; pretraining leaves them out" if dropped else advice
    tell(f"near-duplicates: {shown}{done if leaks else ''}")


def _grids_of(split: str, loader: BatchLoader) -> Tensor:
    """Return the grid of each image of a loader, `(N, 8, 9)`; each process reads a part."""
    several = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    mine = loader.indices.tensor_split(processes)[rank]
    part = BatchLoader(loader.source, mine, loader.batch_size, seed=0, shuffle=False, name=loader.name)
    batches = [grey_grids(images) for images, *_ in tracked(part, f"hash {split}", "batches")]
    grids = torch.cat(batches) if batches else torch.empty(0, 8, 9)
    if not several:
        return grids
    parts: list[Tensor] = [grids] * processes
    dist.all_gather_object(parts, grids)
    return torch.cat(parts)
